"""The tokenizer loses nothing, is the same for the same texts, and never takes a text for a special token."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, MBart50Tokenizer, PreTrainedTokenizerFast

from hf_mt import tokenization
from hf_mt.arguments import DataArguments, ModelArguments
from hf_mt.errors import InputError
from hf_mt.tokenization import (
    SPECIAL_TOKENS,
    check_same_tokens,
    get_tokenizer,
    load_tokenizer,
    near_codes,
    train_tokenizer,
)


TYPES = ("bpe", "unigram", "byte_bpe")
CHARACTERS = "abcdeksuéÉÀßñ0129 .,!?-'’<>/_▁\u00a0\u202f\t\u0301\u200d👩🔬ж中½"
TEXTS = [
    f"{CHARACTERS} une cabane, dés 19 !",
    "des cadeaux  <s> de l'abbé : 2 902",
    " a bad bed</s> <pad> ",
] * 4
SENTENCES = st.text(st.sampled_from(CHARACTERS), max_size=30) | st.lists(
    st.sampled_from([*CHARACTERS, " ", " ", "</s>", "<unk>", "des", "l'a"]), max_size=12
).map("".join)


@pytest.fixture(scope="module")
def trained() -> Callable[[str], PreTrainedTokenizerFast]:
    tokenizers = {kind: train_tokenizer(TEXTS, vocab_size=300, tokenizer_type=kind) for kind in TYPES}
    return tokenizers.__getitem__


def is_lossless(tokenizer: PreTrainedTokenizerFast, text: str) -> bool:
    return tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.parametrize("kind", TYPES)
@given(text=SENTENCES)
@settings(max_examples=150, deadline=None)
def test_known_characters_survive(trained: Callable, kind: str, text: str) -> None:
    assert is_lossless(trained(kind), text)
    assert 3 not in trained(kind)(text)["input_ids"]


@given(text=st.text(max_size=20))
@settings(max_examples=200, deadline=None)
def test_bytes_survive_whatever_they_are(trained: Callable, text: str) -> None:
    assert is_lossless(trained("byte_bpe"), text)


def test_the_usual_metaspace_is_not_lossless() -> None:
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(special_tokens=list(SPECIAL_TOKENS), show_progress=False))
    control = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert is_lossless(control, "des cadeaux")
    assert not is_lossless(control, " des cadeaux")
    assert not is_lossless(control, "▁")


@pytest.mark.parametrize("kind", TYPES)
def test_special_ids_and_end_of_sentence(trained: Callable, kind: str) -> None:
    tokenizer = trained(kind)
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3]
    ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert ids == (0, 1, 2, 3)
    for text in ("", "des", " bad bed"):
        pair = tokenizer(text, text_target=text)
        assert pair["input_ids"] == pair["labels"]
        assert pair["labels"][-1] == 2 and not set(pair["labels"][:-1]) & {0, 1, 2}
        assert 2 not in tokenizer(text, add_special_tokens=False)["input_ids"]
    assert sorted(tokenizer("des")) == ["attention_mask", "input_ids"]


@pytest.mark.parametrize("kind", TYPES)
def test_special_tokens_in_texts_are_texts(kind: str, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["</s>", "<s>x</s> <pad><unk></s>"] * 50, vocab_size=300, tokenizer_type=kind)
    tokenizer.save_pretrained(tmp_path)
    for reader in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        for text in ("</s>", "x<s></s>", "<pad> <unk>"):
            ids = reader([text])["input_ids"][0]
            assert min(ids[:-1]) > 3 and ids[-1] == 2
            assert reader.decode(ids, skip_special_tokens=True) == text
        assert min(reader("x<s>", split_special_tokens=False)["input_ids"][:-1]) == 1  # what is avoided


@pytest.mark.parametrize("kind", TYPES)
def test_saved_as_a_tokenizer_of_transformers(trained: Callable, kind: str, tmp_path: Path) -> None:
    tokenizer = trained(kind)
    tokenizer(["a", "des cadeaux"], padding=True)
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == PreTrainedTokenizerFast.__name__ and "auto_map" not in config
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    other = train_tokenizer([text[::-1] for text in TEXTS], vocab_size=300, tokenizer_type=kind)
    texts = [*TEXTS, " 1902", "a\u0301  b"]
    assert loaded(texts)["input_ids"] == tokenizer(texts)["input_ids"] != other(texts)["input_ids"]
    assert loaded.padding_side == "right" and len(loaded) == len(tokenizer)


@pytest.mark.parametrize("kind", TYPES)
def test_digits_are_single_if_asked_for(kind: str) -> None:
    texts = ["in 1902, 1902 or 1902a a1902 19025"] * 20
    single, joined = (
        train_tokenizer(texts, vocab_size=300, tokenizer_type=kind, split_digits=split) for split in (True, False)
    )
    assert single.tokenize("a1902")[-4:] == ["1", "9", "0", "2"]
    assert len(joined.tokenize("1902")) < 4


@pytest.mark.parametrize("kind", TYPES)
def test_same_texts_same_tokenizer(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained_states() -> set[str]:
        return {train_tokenizer(TEXTS, vocab_size=300, tokenizer_type=kind)._tokenizer.to_str() for _ in range(4)}

    states = trained_states()
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    assert len(states | trained_states()) == 1
    if kind == "unigram":  # what the trainer itself gives has the order of a hash in it
        monkeypatch.setattr(tokenization, "_reproducible_unigram", lambda backend: backend.model)
        assert len(trained_states()) > 1


def test_size_is_checked_and_told(caplog: pytest.LogCaptureFixture) -> None:
    texts = ["abc", "abd"]  # four letters, the space, four special tokens
    with pytest.raises(InputError, match="vocab_size is 8, .* 9 at least"):
        train_tokenizer(texts, vocab_size=8)
    with pytest.raises(InputError, match="260"):
        train_tokenizer(texts, vocab_size=259, tokenizer_type="byte_bpe")
    with pytest.raises(InputError, match="no text"):
        train_tokenizer(["", ""], vocab_size=1000)
    assert len(train_tokenizer(texts, vocab_size=9)) == 9 and not caplog.records
    tokenizer = train_tokenizer(texts, vocab_size=1000)
    assert f"The tokenizer has {len(tokenizer)} tokens, not the 1000" in caplog.text


def test_frequent_words_are_unigram_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["the runners saw many cabins", "cab man sinks a run", "seas saw the many runners"] * 5

    def tokens() -> list[str]:
        return train_tokenizer(texts, vocab_size=60, tokenizer_type="unigram").tokenize("the many runners")

    assert tokens() == [" the", " many", " runners"]
    monkeypatch.setattr(tokenization, "_glued_words", lambda backend, texts: [])
    assert len(tokens()) > 3


@pytest.mark.parametrize(("kind", "unknown"), [("bpe", 2), ("unigram", 1), ("byte_bpe", 0)])
def test_unknown_characters_are_unknown(trained: Callable, kind: str, unknown: int) -> None:
    assert trained(kind)("bed ΩΩ bed")["input_ids"].count(3) == unknown  # unigram takes a run of them for one


def test_loading_tells_what_is_wrong(trained: Callable, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No tokenizer could be loaded"):
        load_tokenizer(str(tmp_path))
    PreTrainedTokenizerFast(tokenizer_object=trained("bpe")._tokenizer, eos_token="</s>").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no pad token"):
        load_tokenizer(str(tmp_path))


def test_languages_of_a_multilingual_tokenizer(tmp_path: Path) -> None:
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", "a", "b"]
    mbart = MBart50Tokenizer(vocab=[(piece, -float(place)) for place, piece in enumerate(pieces)])
    mbart.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path), source_lang="de", target_lang="fr_XX")
    pair = tokenizer("a", text_target="a")
    assert pair["input_ids"][0] == tokenizer.convert_tokens_to_ids("de_DE")
    assert pair["labels"][0] == tokenizer.convert_tokens_to_ids("fr_XX")
    with pytest.raises(InputError, match=r"no language 'tlh', .* are near: tl_XX\. .*text pairs .* train\.tl_XX\."):
        load_tokenizer(str(tmp_path), source_lang="tlh")
    mbart.src_lang = "tlh"  # by itself it takes an unknown language without a word
    assert mbart("a")["input_ids"][0] == mbart.unk_token_id


def test_codes_that_may_be_meant() -> None:
    """Of some two hundred, those that somebody can read."""
    codes = [
        "ace_Arab",
        "deu_Latn",
        "eng_Latn",
        "zho_Hans",
        "zho_Hant",
        *(f"x{letter}a_Latn" for letter in "abcdefghijklm"),
    ]
    assert near_codes("de", codes) == ["deu_Latn"] and near_codes("de", ["__en__", "__de__"]) == ["__de__"]
    assert near_codes("zho", codes) == ["zho_Hans", "zho_Hant"]
    assert near_codes("eng_Latin", codes)[0] == "eng_Latn" and len(near_codes("y_Latn", codes)) == 10
    assert len(near_codes("q", codes)) == 10 and near_codes("de", []) == []


def test_a_checkpoint_has_the_tokens_of_now(trained: Callable, tmp_path: Path) -> None:
    trained("bpe").save_pretrained(tmp_path)
    check_same_tokens(str(tmp_path), trained("bpe"))
    with pytest.raises(InputError, match="another vocabulary"):
        check_same_tokens(str(tmp_path), trained("unigram"))


def test_loads_if_there_is_one_else_trains(trained: Callable, tmp_path: Path) -> None:
    corpus = DatasetDict(train=Dataset.from_list([{"translation": {"en": text, "fr": "ü"}} for text in TEXTS]))
    data = DataArguments(source_lang="en", target_lang="fr", tokenizer_type="unigram")
    trained("bpe").save_pretrained(tmp_path)
    loaded = get_tokenizer(corpus, data, ModelArguments(tokenizer_name=str(tmp_path)), 100)
    assert loaded.get_vocab() == trained("bpe").get_vocab()
    new = get_tokenizer(corpus, data, ModelArguments(), 100)
    assert isinstance(new._tokenizer.model, models.Unigram) and len(new) <= 100
    assert is_lossless(new, "ü des") and not is_lossless(loaded, "ü des")
