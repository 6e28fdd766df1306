"""Linear CKA (Kornblith et al., 2019): how alike two layers arrange the same tokens.

Letters: T tokens, C and D channels of the two layers.
"""

from torch import Tensor


def linear_cka(xx: Tensor, xy: Tensor, yy: Tensor) -> Tensor:
    """Scatter matrices [C, C], [C, D], [D, D] of the tokens x [T, C] and y [T, D] → scalar, 0 to 1.

    |xy|² / (|xx| |yy|), Frobenius norms, of tokens whose mean is taken off. In numpy:

        x, y = x - x.mean(0), y - y.mean(0)
        k, l = x @ x.T, y @ y.T
        cka = (k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum())

    1 for layers that are equal up to scale, rotation and offset; the channels need not be as many. Directions
    count by their variance, so that a few large ones can rule it; and it is above 0 by chance, the more so
    the fewer tokens there are for the channels. NaN where nothing varies.
    """
    return (xy / xx.norm().sqrt() / yy.norm().sqrt()).square().sum()
