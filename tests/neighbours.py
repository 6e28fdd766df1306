"""kNN classification as a loop over queries, in numpy."""

import numpy as np


def knn_by_hand(bank, bank_targets, queries, k, temperature):
    """Classes of the queries; see `knn_predictions`."""
    bank, targets, queries = (np.asarray(x) for x in (bank, bank_targets, queries))
    answers = []
    for query in queries:
        s = [float(query @ one / np.linalg.norm(query) / np.linalg.norm(one)) for one in bank]
        near = sorted(range(len(bank)), key=lambda place: (-s[place], place))[:k]
        votes = dict.fromkeys(range(targets.max() + 1), 0.0)
        for place in near:
            votes[targets[place]] += np.exp(s[place] / temperature)
        answers.append(max(votes, key=lambda c: (votes[c], -c)))
    return answers
