from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from controller.registry.cached import CacheKey
from controller.registry.ledger import Held, Ledger
from tests.registry.packages import key_of

NUMBERS = st.integers(0, 5)
OWNERS = st.sampled_from(["a", "b", "c"])


def record(number: int, stream: int | None = None, size: int = 10) -> Held:
    """A package whose stream may be shared with others."""
    shared = number if stream is None else stream
    return Held(key_of(number), {f"{shared:064x}": size, f"{1000 + number:064x}": size})


def contents_of(held: Held) -> set[str]:
    return set(held.contents)


def test_shared_content_counts_once_and_stays_while_it_is_used():
    ledger = Ledger()
    ledger.enter(record(1, stream=7))
    ledger.enter(record(2, stream=7))
    assert ledger.size == 30
    assert ledger.contents_of_only(key_of(1)) == {f"{1001:064x}"}
    assert ledger.leave(key_of(1))
    assert ledger.size == 20
    assert ledger.contents_of_only(key_of(2)) == contents_of(record(2, stream=7))
    assert not ledger.leave(key_of(1))


def test_what_two_need_is_freed_by_the_second():
    ledger = Ledger()
    ledger.lease("a", {key_of(1), key_of(2)})
    ledger.lease("b", {key_of(1)})
    assert ledger.freed_by("a") == [key_of(2)]
    ledger.release("a")
    assert ledger.freed_by("b") == [key_of(1)]
    assert ledger.freed_by("nobody") == []


def test_the_least_recently_used_goes_first():
    ledger = Ledger()
    for number in (1, 2, 3):
        ledger.enter(record(number))
    ledger.enter(record(1))
    ledger.lease("a", {key_of(2)})
    assert ledger.unleased() == [key_of(3), key_of(1)]
    assert ledger.victims(record(4), 80) == []
    assert ledger.victims(record(4), 70) == [key_of(3)]
    assert ledger.victims(record(4), 40) == [key_of(3), key_of(1)]
    assert ledger.victims(record(4), 39) is None


def test_content_that_the_new_package_shares_is_no_gain():
    ledger = Ledger()
    ledger.enter(record(1, stream=7))
    assert ledger.victims(record(2, stream=7), 30) == []
    assert ledger.victims(record(2, stream=7), 25) == [key_of(1)]
    assert ledger.victims(record(2, stream=7), 15) is None


class LedgerMachine(RuleBasedStateMachine):
    """The ledger against sets that are computed anew each time."""

    def __init__(self):
        super().__init__()
        self.ledger = Ledger()
        self.records: dict[CacheKey, Held] = {}
        self.leases: dict[str, set[CacheKey]] = {}

    @rule(number=NUMBERS, stream=NUMBERS)
    def enter(self, number, stream):
        self.records[key_of(number)] = record(number, stream)
        self.ledger.enter(record(number, stream))

    @rule(number=NUMBERS)
    def leave(self, number):
        known = self.records.pop(key_of(number), None) is not None
        assert self.ledger.leave(key_of(number)) is known

    @rule(owner=OWNERS, number=NUMBERS)
    def lease(self, owner, number):
        self.leases.setdefault(owner, set()).add(key_of(number))
        self.ledger.lease(owner, {key_of(number)})

    @rule(owner=OWNERS)
    def release(self, owner):
        mine = self.leases.pop(owner, set())
        others = set().union(*self.leases.values())
        assert set(self.ledger.freed_by(owner)) == mine - others
        self.ledger.release(owner)

    @rule(number=NUMBERS, stream=NUMBERS, budget=st.integers(0, 120))
    def make_room(self, number, stream, budget):
        new = record(number, stream)
        victims = self.ledger.victims(new, budget)
        leased = set().union(*self.leases.values())
        gone = set(victims if victims is not None else self.records) - {new.key}
        kept = [r for k, r in self.records.items() if k not in gone - leased]
        size = 10 * len(set().union(contents_of(new), *map(contents_of, kept)))
        if victims is None:
            assert size > budget
        else:
            assert not leased & set(victims)
            assert size <= budget or not victims

    @invariant()
    def sizes_are_those_of_the_content(self):
        contents = set().union(*map(contents_of, self.records.values()))
        assert self.ledger.size == 10 * len(contents)
        assert len(self.ledger) == len(self.records)

    @invariant()
    def nobody_elses_content_is_ever_removed(self):
        for key, mine in self.records.items():
            others = [r for k, r in self.records.items() if k != key]
            alone = contents_of(mine) - set().union(*map(contents_of, others))
            assert self.ledger.contents_of_only(key) == alone


TestLedgerMachine = LedgerMachine.TestCase


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=10))
def test_entering_twice_is_entering_once(pairs):
    once, twice = Ledger(), Ledger()
    for number, stream in pairs:
        once.enter(record(number, stream))
        twice.enter(record(number, stream))
        twice.enter(record(number, stream))
    assert once.size == twice.size
