"""What a request will cost: its tokens are counted by tiktoken, offline, and its answer is estimated.

``CostEstimator`` makes an ``Estimate`` when a request is read and a ``Cost`` when it is sent. It learns
from responses how long those of the same model are.

Names that cross the border (module, names):

    counter    TokenCounter
    estimates  Cost, CostEstimator
"""
