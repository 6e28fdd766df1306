"""timm's models: made, given weights from files of many kinds, and written where timm finds them."""
