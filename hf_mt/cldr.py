"""A translation corpus without a download: the Unicode CLDR, rendered in two languages.

- One draw of values (a date, an amount, a unit...) is a function of the locale: called with two locales it gives a
  sentence pair. Reordering, copying, agreement and 12- to 24-hour arithmetic all occur; nothing is guessed.
- The target can be computed from the source. What the two languages don't tell apart in the same way (a unit, a date
  format, a list style) is found by probing when a phrase book is opened, and is left out for that pair of languages.
- A phrase is one flat list of pieces, and no piece can be read as two others: a lone time has no zone, a date with a
  zone always has its weekday, a duration's first unit tells how many follow, a time from now has a direction.
- Every source and every target occurs once in the whole corpus, so the splits share neither.
- Names are limited to about fifty each, so that a model of two million parameters can learn them in minutes.

Source: Unicode CLDR, https://cldr.unicode.org (data files under the Unicode License v3), through Babel.
"""

from __future__ import annotations

import datetime
import difflib
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

from babel import Locale, UnknownLocaleError, dates, lists, numbers, units
from babel.localedata import locale_identifiers
from datasets import DatasetDict

from hf_mt.errors import InputError
from hf_mt.pair_files import pairs_to_dataset


logger = logging.getLogger(__name__)

Rendering = Callable[[Locale], str]

PROBES = 1200  # draws of each kind that must be unambiguous, shared among its manners
DRAWS_IN_VAIN = 20_000  # rejected draws in a row after which a corpus counts as exhausted

TERRITORIES = (
    "FR DE IT ES GB US CA MX BR AR CL PE CO JP CN KR IN ID TH VN AU NZ RU UA PL CZ HU RO BG GR TR EG MA DZ NG KE ET"
    " ZA SE NO DK FI IS NL BE CH AT PT IE IL SA IQ"
)
LANGUAGES = (
    "en fr de it es pt nl sv da nb fi is pl cs sk hu ro bg el ru uk tr ar he fa hi bn ta te ur th vi id ms ja ko zh"
    " sw am zu af ga cy eu ca gl eo la lt lv et sq"
)
CURRENCIES = "USD EUR JPY GBP CHF CAD AUD CNY INR BRL MXN SEK NOK DKK PLN CZK HUF RUB TRY KRW ZAR THB IDR ILS NZD EGP"
UNITS = (
    "length-millimeter length-centimeter length-meter length-kilometer length-inch length-foot length-yard length-mile"
    " length-light-year area-square-meter area-square-kilometer area-hectare area-acre mass-gram mass-kilogram"
    " mass-tonne mass-ounce mass-pound volume-milliliter volume-liter volume-cubic-meter volume-gallon volume-barrel"
    " speed-kilometer-per-hour speed-meter-per-second speed-mile-per-hour speed-knot temperature-celsius"
    " temperature-fahrenheit digital-byte digital-kilobyte digital-megabyte digital-gigabyte digital-terabyte"
    " digital-petabyte electric-volt electric-ampere electric-ohm energy-joule energy-kilocalorie"
    " energy-kilowatt-hour frequency-hertz frequency-megahertz frequency-gigahertz power-watt power-kilowatt"
    " power-horsepower pressure-bar pressure-hectopascal light-lumen"
)
SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800, "month": 2592000, "year": 31536000}
LARGEST = {"week": 51, "day": 6, "hour": 23, "minute": 59, "second": 59}  # before the next larger unit begins
DURATIONS = ("week day", "day hour minute", "hour minute second", "minute second")  # the first word tells the rest
LIST_STYLES = ("standard", "or", "unit")


class _Zone(datetime.tzinfo):
    """A time zone by name, in standard or summer time whatever the date; Babel reads `key` as it does zoneinfo's."""

    def __init__(self, key: str, hours: int, *, summer: bool = False) -> None:
        self.key = key
        self.saving = datetime.timedelta(hours=int(summer))
        self.offset = datetime.timedelta(hours=hours) + self.saving

    def utcoffset(self, moment: datetime.datetime | None) -> datetime.timedelta:
        return self.offset

    def dst(self, moment: datetime.datetime | None) -> datetime.timedelta:
        return self.saving

    def tzname(self, moment: datetime.datetime | None) -> str:
        return self.key


OFFSETS = {"America/New_York": -5, "America/Chicago": -6, "America/Los_Angeles": -8, "America/Sao_Paulo": -3}
OFFSETS |= {"Europe/Paris": 1, "Europe/Athens": 2, "Europe/Moscow": 3, "Asia/Tokyo": 9, "Australia/Sydney": 10}
ZONES = {"UTC": _Zone("UTC", 0)}
ZONES |= {f"{key} standard": _Zone(key, hours) for key, hours in OFFSETS.items()}
ZONES |= {f"{key} summer": _Zone(key, hours, summer=True) for key, hours in OFFSETS.items()}


@dataclass(frozen=True)
class Kind:
    """One kind of piece: `draw(rng, manner)` fixes its values, `manners` are its formats, names or units."""

    draw: Callable[[random.Random, str], Rendering]
    manners: Sequence[str]
    weight: int


def _number(rng: random.Random, digits: int) -> int | Decimal:
    whole, decimals = rng.randrange(1, 10 ** rng.randint(1, digits)), rng.choice((0, 0, 0, 1, 2))
    # No trailing zero: the rendered text would drop it, but plural rules (1 meter, 1.0 meters) would still see it.
    return Decimal(whole * 10 + rng.randint(1, 9)).scaleb(-decimals) if decimals else whole


def _day(rng: random.Random) -> datetime.date:
    return datetime.date(1900, 1, 1) + datetime.timedelta(days=rng.randrange(73_000))


def _clock(rng: random.Random) -> datetime.time:
    return datetime.time(rng.randrange(24), rng.randrange(60), rng.randrange(60))


def _date(rng: random.Random, manner: str) -> Rendering:
    day = _day(rng)
    if manner == "yMd":
        return lambda locale: dates.format_skeleton(manner, day, locale=locale)
    return lambda locale: dates.format_date(day, manner, locale)


def _time(rng: random.Random, manner: str) -> Rendering:
    time = _clock(rng)
    if manner == "short":  # some languages have a word for midnight sharp, so no seconds may be hidden
        time = time.replace(second=0)
    return lambda locale: dates.format_time(time, manner, locale=locale)


def _moment(rng: random.Random, manner: str) -> Rendering:
    moment = datetime.datetime.combine(_day(rng), _clock(rng), ZONES[manner])
    # Babel's own time formatting would move a moment to UTC; handing it the zone again keeps the clock as drawn.
    return lambda locale: dates.format_datetime(moment, "full", ZONES[manner], locale)


def _days(rng: random.Random, manner: str) -> Rendering:
    start = _day(rng)
    end = start + datetime.timedelta(days=rng.randint(*rng.choice(((31, 300), (400, 4000), (1, 25)))))
    if manner == "yMMM" and (start.year, start.month) == (end.year, end.month):
        end += datetime.timedelta(days=31)
    return lambda locale: dates.format_interval(start, end, manner, locale=locale)


def _hours(rng: random.Random, manner: str) -> Rendering:
    start, end = sorted(rng.sample(range(1440), 2))
    times = [datetime.time(minutes // 60, minutes % 60) for minutes in (start, end)]
    return lambda locale: dates.format_interval(
        *times, "Hm" if "H" in locale.time_formats["short"].pattern else "hm", locale=locale
    )


def _duration(rng: random.Random, manner: str) -> Rendering:
    amounts = [(rng.randint(1, LARGEST[unit]), f"duration-{unit}") for unit in manner.split()]
    return lambda locale: lists.format_list([_measured(n, unit, locale) for n, unit in amounts], "unit", locale)


def _from_now(rng: random.Random, manner: str) -> Rendering:
    delta = datetime.timedelta(seconds=rng.choice((-1, 1)) * rng.randint(1, 60) * SECONDS[manner])
    return lambda locale: dates.format_timedelta(delta, add_direction=True, locale=locale)


def _price(rng: random.Random, manner: str) -> Rendering:
    currency, style = manner.split()
    amount = Decimal(rng.randrange(1, 10 ** rng.randint(1, 5)))
    precision = numbers.get_currency_precision(currency)
    if precision and rng.random() < 0.6:
        amount += Decimal(rng.randrange(10**precision)).scaleb(-precision)
    return lambda locale: numbers.format_currency(amount, currency, locale=locale, format_type=style)


def _measure(rng: random.Random, manner: str) -> Rendering:
    amount = _number(rng, digits=5)
    return lambda locale: _measured(amount, manner, locale)


def _measured(amount: int | Decimal, unit: str, locale: Locale) -> str:
    text = units.format_unit(amount, unit, "long", locale=locale)
    # Where a long form is missing, CLDR takes the short one, but Babel shows the identifier.
    return text if unit not in text else units.format_unit(amount, unit, "short", locale=locale)


def _percentage(rng: random.Random, manner: str) -> Rendering:
    share = Decimal(_number(rng, digits=3)).scaleb(-2)
    return lambda locale: numbers.format_percent(share, locale=locale, decimal_quantization=False)


def _plain_number(rng: random.Random, manner: str) -> Rendering:
    sign = {"positive": 1, "negative": -1}[manner]
    number = sign * _number(rng, digits=6)
    return lambda locale: numbers.format_decimal(number, locale=locale)


def _territory(rng: random.Random, manner: str) -> Rendering:
    return lambda locale: locale.territories[manner]


def _language(rng: random.Random, manner: str) -> Rendering:
    return lambda locale: locale.languages[manner]


def _letters(rng: random.Random, manner: str) -> Rendering:
    """Only for probing the list styles: what a list looks like, whatever is in it."""
    letters = list("ABCDE")[: rng.randint(2, 5)]
    return lambda locale: lists.format_list(letters, manner, locale)


KINDS = {
    "date": Kind(_date, ("full", "long", "yMd", "medium"), 14),
    "time": Kind(_time, ("short", "medium"), 7),
    "moment": Kind(_moment, tuple(ZONES), 8),
    "days": Kind(_days, ("yMMMd", "yMMM"), 7),
    "hours": Kind(_hours, ("short",), 5),
    "duration": Kind(_duration, DURATIONS, 8),
    "from_now": Kind(_from_now, tuple(SECONDS), 5),
    "price": Kind(_price, [f"{code} {style}" for style in ("standard", "name") for code in CURRENCIES.split()], 13),
    "measure": Kind(_measure, UNITS.split(), 13),
    "percentage": Kind(_percentage, ("percent",), 4),
    "number": Kind(_plain_number, ("positive", "negative"), 3),
    "territory": Kind(_territory, TERRITORIES.split(), 6),
    "language": Kind(_language, LANGUAGES.split(), 6),
}


def usable_manners(kind: Kind, source: Locale, target: Locale) -> list[str]:
    """The manners of a kind that both locales can render and that the source text tells apart.

    Two probes with the same source and different targets would make the translation a guess: the manner that
    comes later is left out.
    """
    translations: dict[str, str] = {}
    kept = []
    for manner in kind.manners:
        try:
            probes = [kind.draw(random.Random(seed), manner) for seed in range(PROBES // len(kind.manners))]
            pairs = [(probe(source), probe(target)) for probe in probes]
        except (LookupError, ValueError, NotImplementedError):  # what Babel raises where a locale lacks the data
            continue
        seen = dict(translations)
        if all(text and other and seen.setdefault(text, other) == other for text, other in pairs):
            kept.append(manner)
            translations = seen
    return kept


@dataclass(frozen=True)
class PhraseBook:
    """What can be said in one locale and translated into another without guessing."""

    source: Locale
    target: Locale
    manners: Mapping[str, Sequence[str]]
    list_styles: Sequence[str]

    def draw(self, rng: random.Random, max_phrases: int) -> tuple[str, str]:
        """One sentence pair of 1 to `max_phrases` pieces; a quarter of them have pieces of one kind only."""
        names, count = list(self.manners), rng.randint(1, max_phrases)
        chosen = rng.choices(names, [KINDS[name].weight for name in names], k=count)
        if rng.random() < 0.25:
            chosen = [chosen[0]] * count
        pieces = [KINDS[name].draw(rng, rng.choice(self.manners[name])) for name in chosen]
        style = rng.choice(self.list_styles)
        source, target = (
            lists.format_list([piece(locale) for piece in pieces], style, locale)
            for locale in (self.source, self.target)
        )
        return source, target


@lru_cache(maxsize=16)
def open_phrase_book(source: Locale, target: Locale) -> PhraseBook:
    """Probe every kind in both locales; what is left out is logged."""
    manners = {name: usable_manners(kind, source, target) for name, kind in KINDS.items()}
    for name, kept in manners.items():
        left_out = [manner for manner in KINDS[name].manners if manner not in kept]
        if left_out:
            logger.info("%s -> %s: %s without %s", source, target, name, ", ".join(left_out))
    styles = usable_manners(Kind(_letters, LIST_STYLES, 1), source, target)
    return PhraseBook(source, target, {name: kept for name, kept in manners.items() if kept}, styles)


def cldr_corpus(
    source_lang: str, target_lang: str, *, sizes: Mapping[str, int], seed: int = 0, max_phrases: int = 3
) -> DatasetDict:
    """Sentence pairs rendered from the CLDR in any two of Babel's locales.

    Args:
        source_lang, target_lang: locales such as `en`, `fr-CA`, `zh_Hant`; they name the two texts of a pair.
        sizes: the number of pairs of each split; a split of size 0 is absent.
        seed: a corpus is a function of its arguments and of Babel's version. A larger split begins with the smaller.
        max_phrases: pieces in one pair at most; 3 gives about 15 words, and more tests longer sentences.

    Returns:
        splits with one column, `translation: {source_lang: str, target_lang: str}`; no source and no target occurs
        twice, neither in a split nor in two.

    Raises:
        InputError: unknown locale, one locale twice, `max_phrases` below 1, or more pairs than there are.
    """
    source, target = find_locale(source_lang), find_locale(target_lang)
    if source == target:
        raise InputError(
            f"{source_lang!r} and {target_lang!r} are the same locale; choose two, such as 'en' and 'fr'."
        )
    if max_phrases < 1:
        raise InputError(f"max_phrases is {max_phrases}; a sentence has 1 piece or more.")
    book = open_phrase_book(source, target)
    return disjoint_splits(lambda rng: book.draw(rng, max_phrases), sizes, seed, (source_lang, target_lang))


def find_locale(name: str) -> Locale:
    """The Babel locale of a name such as `fr`, `fr-CA` or `zh_Hant`; InputError with the nearest names otherwise."""
    try:
        return Locale.parse(name.replace("-", "_"))
    except (UnknownLocaleError, ValueError, TypeError) as error:
        known = {identifier: identifier for identifier in sorted(locale_identifiers())}
        known |= {text.lower(): code for code, text in Locale("en").languages.items() if code in known}
        near = [known[match] for match in difflib.get_close_matches(name.lower(), known, n=4)]
        hint = f"did you mean {', '.join(dict.fromkeys(near))}?" if near else "try one such as en, fr, de, ja, ar."
        raise InputError(f"{name!r} is not among the {len(locale_identifiers())} CLDR locales; {hint}") from error


def disjoint_splits(
    draw: Callable[[random.Random], tuple[str, str]], sizes: Mapping[str, int], seed: int, languages: tuple[str, str]
) -> DatasetDict:
    """Splits of drawn pairs, in which no source and no target occurs twice.

    Every split has a random stream of its own, and `train` is drawn last: its size has no influence on the others,
    and theirs none on it but for the few pairs that they took first.
    """
    if any(size < 0 for size in sizes.values()):
        raise InputError(f"the sizes of the splits are {dict(sizes)}; none can be negative.")
    sources: set[str] = set()
    targets: set[str] = set()
    splits: dict[str, list[tuple[str, str]]] = {}
    for split in sorted(sizes, key=lambda name: (name == "train", name)):
        rng = random.Random(f"{seed}/{split}")
        pairs = splits[split] = []
        in_vain = 0
        while len(pairs) < sizes[split]:
            source, target = draw(rng)
            if source in sources or target in targets:
                in_vain += 1
                if in_vain == DRAWS_IN_VAIN:
                    raise InputError(
                        f"{len(sources)} different pairs were found for splits of {dict(sizes)}, and {in_vain} more "
                        "draws gave no new one; ask for smaller splits or for longer sentences."
                    )
                continue
            in_vain = 0
            sources.add(source)
            targets.add(target)
            pairs.append((source, target))
    return DatasetDict({split: pairs_to_dataset(splits[split], languages) for split in sizes if sizes[split]})
