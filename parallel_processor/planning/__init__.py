"""Before a run and around it: what requests cost, and whether the next one still fits a budget.

Names that cross the border (module, names):

    prices  Price, Prices, find_prices
"""
