"""Which texts are equal, equal up to case, punctuation and spaces, or similar, a few words changed.

- A text is compared as the set of its pairs of neighbouring words, so the order of the words counts. Chinese and
  Japanese have no spaces: each character is a word.
- The textbook finds similar sets by MinHash and takes all pairs of words. Then all prompts of one template are alike.
  Here the pairs of words that many texts have are left out first. What is left tells the texts apart.
- MinHash only says where to look. Every find is checked by the real similarity of both texts.
- Of a text of more than 1,000 words the first 500 and the last 500 are compared. The memory for this is less than that
  of the texts: 4 bytes for each pair of words, 200 for each text.
"""

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from functools import cache
from itertools import combinations, count
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

# One changed word in a text of 15 changes 2 of its 14 pairs of words: the two texts share 12 of 16, which is 0.75; two
# changed words in 20 leave 0.65, a sentence added to 100 words more than 0.8.
SIMILAR = 0.6  # the least share of all pairs of words
SIMILAR_RARE = 0.5  # the same without the frequent pairs, which one changed word in 15 can lower to 0.5
SHORTEST = 10  # pairs of words. In a shorter text, as "What is the capital of …?", one other word is another question.
LEAST_COMPARED = 6  # pairs of words that are left when the frequent ones are out
# A band is two hash values, which two texts share with probability similarity ** 2. So texts of similarity 0.5 share
# one of 24 bands in all but 1 of 1,000 cases, and texts of 0.7 in all but 1 of 10,000,000.
BANDS, BAND = 24, 2
AT_ONCE = 1000  # texts
LONGEST = 500  # words: of a text of more than twice as many, the first and the last 500 are compared
CHINESE = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # and Japanese


@cache
def separators() -> dict[int, str]:
    """Return the table that makes a space of punctuation, spaces and control characters.

    Symbols stay: `a < b` and `a > b` are different, and so are two emoji. So do the marks of Indian scripts, which
    Python's `\\w` takes for punctuation.
    """
    kinds = {"Cc", "Cf", "Zs", "Zl", "Zp", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po"}
    return {code: " " for code in range(0x20000) if unicodedata.category(chr(code)) in kinds}


def split_words(text: str) -> list[str]:
    """Return a text's words without case and punctuation; each Chinese character is a word."""
    if not text.isascii():
        text = re.sub(f"([{CHINESE}])", r" \1 ", unicodedata.normalize("NFKC", text))
    return text.casefold().translate(separators()).split()


def number(values: Iterable[Hashable]) -> tuple[list[int], list]:
    """Number values from 0 by their first appearance; return each value's number, and the different values."""
    seen: dict = {}
    return [seen.setdefault(value, len(seen)) for value in values], list(seen)


class Texts(NamedTuple):
    """All texts of one kind, read."""

    exact: list[int]  # of each text: equal texts have equal numbers
    words: list[int]  # of each text: texts with equal words have equal numbers
    similar: dict[int, set[int]]  # of a number in `words`: those of similar texts


def read_texts(texts: list[str], kind: str) -> Texts:
    """Compare all texts of one kind, the prompts or the responses."""
    exact, different = number(texts)
    vocabulary: dict[str, int] = defaultdict(count().__next__)
    numbers: dict[bytes, int] = {}
    by_exact, pairs = [], []
    for text in tqdm(different, desc=f"read {kind}s", unit="text", delay=1):
        words = split_words(text)
        # a text of punctuation alone is itself; a digest is much smaller than a text
        digest = hashlib.blake2b((" ".join(words) or text).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        by_exact.append(numbers.setdefault(digest, len(numbers)))
        if by_exact[-1] == len(pairs):
            pairs.append(word_pairs(words, vocabulary))
    return Texts(exact, [by_exact[place] for place in exact], find_similar(pairs, kind))


def word_pairs(words: list[str], vocabulary: dict[str, int]) -> np.ndarray:
    """Return the hashes of all neighbouring words, (different pairs,) uint32, sorted."""
    if len(words) > 2 * LONGEST:
        words = words[:LONGEST] + words[-LONGEST:]
    ids = np.fromiter(map(vocabulary.__getitem__, words), dtype=np.uint32, count=len(words))
    return np.unique((ids[:-1] * np.uint32(0x9E3779B1)) ^ (ids[1:] * np.uint32(0x85EBCA77) + np.uint32(0x165667B1)))


def find_similar(pairs: list[np.ndarray], kind: str = "text") -> dict[int, set[int]]:
    """Find texts that are alike but for a few words.

    Args:
        pairs: of each text the hashes of its pairs of words, (n,) uint32, sorted and different.

    Returns:
        The texts that are similar to a text, by number; a text without any is left out.
    """
    rare = leave_out_frequent(pairs)
    long_enough = [
        text for text, kept in enumerate(rare) if len(pairs[text]) >= SHORTEST and len(kept) >= LEAST_COMPARED
    ]
    similar: dict[int, set[int]] = defaultdict(set)
    for one, other in candidates([rare[text] for text in long_enough], kind):
        one, other = long_enough[one], long_enough[other]
        if jaccard(rare[one], rare[other]) >= SIMILAR_RARE and jaccard(pairs[one], pairs[other]) >= SIMILAR:
            similar[one].add(other)
            similar[other].add(one)
    return dict(similar)


def leave_out_frequent(pairs: list[np.ndarray]) -> list[np.ndarray]:
    """Leave out what many texts share: the frame of a judge's prompt, "it is".

    Many is 50 texts; of a small set one in twenty, but not under 10; of a large set one in a thousand.
    """
    limit = max(10, min(50, len(pairs) // 20), len(pairs) // 1000)
    texts_with = np.zeros(2**22, dtype=np.int32)  # by the upper bits of the hash: 16 MB, whatever the data
    for hashes in pairs:
        texts_with[hashes >> 10] += 1
    return [hashes[texts_with[hashes >> 10] <= limit] for hashes in pairs]


def candidates(sets: list[np.ndarray], kind: str = "text") -> Iterator[tuple[int, int]]:
    """Yield every two sets that share a band of their MinHashes, the smaller number first, each two once."""
    bands = sketch(sets, kind).view(np.uint64)  # two hash values of 32 bits in each number
    yielded: set[tuple[int, int]] = set()
    for band in bands.T:
        order = np.argsort(band, kind="stable")
        edges = np.flatnonzero(np.diff(band[order])) + 1
        starts, ends = np.r_[0, edges], np.r_[edges, len(order)]
        is_shared = ends - starts > 1
        for start, end in zip(starts[is_shared], ends[is_shared]):
            for two in combinations(order[start:end].tolist(), 2):
                if two not in yielded:
                    yielded.add(two)
                    yield two


def sketch(sets: list[np.ndarray], kind: str = "text") -> np.ndarray:
    """Return the MinHashes of sets of hashes, none of them empty: (sets, BANDS * BAND) uint32.

    Two sets have the same value in a column with a probability that is their similarity. The library datasketch has the
    same values 20 times slower, because it takes one set after another. Its index keeps a Python set for each text and
    band, gigabytes for 100,000 pairs; `candidates` sorts one column after another instead.
    """
    random = np.random.RandomState(1)
    multipliers = random.randint(0, 2**31, BANDS * BAND, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    offsets = random.randint(0, 2**32, BANDS * BAND, dtype=np.uint32)
    sketches = np.empty((len(sets), BANDS * BAND), dtype=np.uint32)
    for first in tqdm(range(0, len(sets), AT_ONCE), desc=f"compare {kind}s", unit="text", unit_scale=AT_ONCE, delay=1):
        together = sets[first : first + AT_ONCE]
        hashes = np.concatenate(together)
        # mix the bits as MurmurHash3 does at its end, or neighbouring numbers would stay neighbours
        hashes = (hashes ^ (hashes >> 16)) * np.uint32(0x85EBCA6B)
        hashes = (hashes ^ (hashes >> 13)) * np.uint32(0xC2B2AE35)
        hashes ^= hashes >> 16
        starts = np.cumsum([0, *map(len, together[:-1])])
        for column in range(BANDS * BAND):
            values = hashes * multipliers[column] + offsets[column]
            sketches[first : first + AT_ONCE, column] = np.minimum.reduceat(values, starts)
    return sketches


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Return the share of elements that two sorted sets have in common, of all that they have."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)
