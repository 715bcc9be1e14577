"""Planning: what a job will take, how it gets cheaper, and how it stays within a budget.

Names that cross the border (module, names):

    bounds      Deadline, FailureBound
    budget      Budget, make_budget
    costs       Costs, ModelCost
    duplicates  Duplicates
    spending    Spending
"""
