"""Planning: what a job will take, how it gets cheaper, and how it stays within a budget.

Names that cross the border (module, names):

    bounds      Bounds
    budget      Budget, make_budget
    costs       Costs, ModelCost
    duplicates  Duplicates
    pack_sizes  PackSizes
    packer      Packer
    packs       Input, Pack, PackOutcome, Part, has_rows, join, parts_of, take_apart
    plan        Findings, GroupPlan, Plan
    job.spread  Spread
    spending    Spending
"""
