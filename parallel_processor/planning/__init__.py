"""Planning: what a job will take, how it gets cheaper, and how it stays within a budget.

Names that cross the border (module, names):

    duplicates  Duplicates
    plan        Plan, make_plan
    prices      Price, Prices, find_prices
"""
