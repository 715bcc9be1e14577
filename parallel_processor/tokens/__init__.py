"""What a request will cost: its tokens are counted by tiktoken, offline, and its answer is estimated.

``CostEstimator`` gives an ``Estimate`` when a request is read and a ``Cost`` when it is sent; in between it
learns from answers how long answers of the same model are.

Names that cross the border (module, names):

    counter    TokenCounter
    estimates  Cost, CostEstimator
"""
