"""Which facts a record states: entities, attributes and values, chosen so that every question has one answer.

Within a record entities share no telling word, an entity has an attribute (and a topic) once, and all values of an
attribute differ. Facts come in groups of entities x attributes of one kind, so that a value can only be found by
binding it to both. Leaves out: any wording (`facts_rendering.py`, `facts.py`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from generative_adapter.data.facts_attributes import Attribute, Kind, kinds
from generative_adapter.data.facts_vocabulary import vocabulary
from generative_adapter.errors import ConfigError

MAX_TRIES = 40
GROUP_SIDES = (1, 1, 2, 2, 3, 4, 6)  # entities or attributes of a group
PEOPLE_AND_PLACES = ("person", "place", "organization", "female_names", "male_names", "river", "code_name")


@dataclass(frozen=True)
class Entity:
    """Something facts are about; `short_name` is what else it is called without doubt in its record."""

    name: str
    kind: Kind
    gender: str  # "female", "male" or "thing"
    short_name: str = ""
    is_narrator: bool = False


@dataclass(frozen=True)
class Fact:
    """One attribute of one entity with its value."""

    entity: Entity
    attribute: Attribute
    value: str


@dataclass(frozen=True)
class Side:
    """Which of names, templates and attributes are held out. `attributes`: "train", "held_out" or "mixed"."""

    names: bool = False
    templates: bool = False
    attributes: str = "train"


SPLITS = {
    "train": Side(),
    "held_out": Side(names=True, templates=True, attributes="mixed"),
    "held_out_names": Side(names=True),
    "held_out_templates": Side(templates=True),
    "held_out_attributes": Side(attributes="held_out"),
}


def side_of(split: str) -> Side:
    """Returns what a split holds out.

    Raises:
        ConfigError: the split is unknown.
    """
    if split not in SPLITS:
        raise ConfigError(f"unknown split {split!r} of the synthetic facts; expected one of {', '.join(SPLITS)}")
    return SPLITS[split]


@dataclass
class _Sampler:
    rng: random.Random
    side: Side
    facts: list[Fact] = field(default_factory=list)
    name_words: set[str] = field(default_factory=set)  # of entities
    value_words: set[str] = field(default_factory=set)
    values: set[tuple[str, str]] = field(default_factory=set)  # (pool, value)

    def entity(self, kind: Kind) -> Entity | None:
        words = vocabulary()
        for _ in range(MAX_TRIES):
            gender, short_name = "thing", ""
            if kind.kind == "person":
                gender = "female" if self.rng.random() < 0.5 else "male"
                name = words.draw(self.rng, f"{gender}_names", self.side.names)
                if self.rng.random() < 0.75:
                    short_name = name
                    name = f"{name} {words.draw(self.rng, 'surnames', self.side.names)}"
            else:
                name = words.draw(self.rng, kind.names, self.side.names)
                if kind.kind == "pet":
                    gender = "female" if self.rng.random() < 0.5 else "male"
            core = words.core_words(name)
            if core and not core & self.name_words and not core & self.value_words:
                self.name_words |= core
                return Entity(name, kind, gender, short_name)
        return None

    def add(self, entity: Entity, attribute: Attribute) -> None:
        """Adds a fact with a fresh value; adds none where the pool has no fresh value left."""
        words = vocabulary()
        for _ in range(MAX_TRIES):
            value = words.draw(self.rng, attribute.values, self.side.names)
            if (attribute.values, value) in self.values:
                continue
            core = words.core_words(value)
            if attribute.values in PEOPLE_AND_PLACES:
                if core & self.value_words:
                    continue
                self.value_words |= core
            if core & self.name_words:
                continue
            self.values.add((attribute.values, value))
            self.facts.append(Fact(entity, attribute, value))
            return

    def attributes(self, kind: Kind, count: int, num_entities: int, only_first_person: bool = False) -> list[Attribute]:
        """Returns up to `count` attributes of different topics, as many held out as the split asks for."""
        if self.side.attributes == "mixed":
            num_held_out = sum(fact.attribute.held_out for fact in self.facts)
            planned = len(self.facts) + count * num_entities
            missing = max(0.0, planned / 2 - num_held_out) / num_entities
            wanted = int(missing) + (self.rng.random() < missing % 1)
        else:
            wanted = count if self.side.attributes == "held_out" else 0
        order: list[Attribute] = []
        for held_out, number in ((True, wanted), (False, count)):
            pool = [a for a in kind.attributes[held_out] if a.templates[False].first_person or not only_first_person]
            if only_first_person:
                pool = [attribute for attribute in pool if attribute.templates[False].narrator_questions]
            self.rng.shuffle(pool)
            if held_out or self.side.attributes != "held_out":
                order += pool[:number] if held_out else pool
        chosen: list[Attribute] = []
        for attribute in order:
            if len(chosen) < count and all(attribute.topic != other.topic for other in chosen):
                chosen.append(attribute)
        return chosen

    def group(self, kind: Kind, num_facts: int, same_attribute: bool = False) -> None:
        """Adds up to `num_facts` facts of entities x attributes of one kind."""
        num_entities = num_facts if same_attribute else min(self.rng.choice(GROUP_SIDES), num_facts)
        # At least half of what is asked for, so that a record is not made of single facts.
        num_attributes = min(self.rng.choice(GROUP_SIDES), -(-num_facts // num_entities))
        attributes = self.attributes(kind, num_attributes, num_entities)
        entities = [entity for entity in (self.entity(kind) for _ in range(num_entities)) if entity]
        pairs = [(entity, attribute) for entity in entities for attribute in attributes]
        if len(pairs) > num_facts:
            pairs = self.rng.sample(pairs, num_facts)
        for entity, attribute in pairs:
            self.add(entity, attribute)


def sample_facts(
    rng: random.Random,
    num_facts: int,
    side: Side,
    with_narrator: bool = False,
    distinct_attributes: bool = False,
    same_attribute: bool = False,
) -> list[Fact]:
    """Returns `num_facts` facts about which no two questions can be mixed up.

    Args:
        rng: the only source of chance.
        num_facts: at least 1.
        side: what is held out.
        with_narrator: at least half of the facts, as far as there are attributes, are about the one who tells them.
        distinct_attributes: no attribute appears twice, so that it alone tells the facts apart.
        same_attribute: one attribute of as many entities as its values allow, so that only the entity tells them apart.

    Raises:
        ConfigError: `num_facts` is below 1, or the vocabulary has no more values for so many facts.
    """
    if num_facts < 1:
        raise ConfigError(f"num_facts is {num_facts}; expected at least 1")
    sampler = _Sampler(rng, side)
    possible = [kind for kind in kinds() if side.attributes == "train" or kind.attributes[True]]
    weights = [kind.weight for kind in possible]
    if with_narrator:
        person = next(kind for kind in kinds() if kind.kind == "person")
        narrator = Entity("I", person, "thing", is_narrator=True)
        for attribute in sampler.attributes(person, rng.randint((num_facts + 1) // 2, num_facts), 1, True):
            sampler.add(narrator, attribute)
    fruitless = 0
    while len(sampler.facts) < num_facts:
        before = len(sampler.facts)
        sampler.group(
            rng.choices(possible, weights)[0], 1 if distinct_attributes else num_facts - before, same_attribute
        )
        if distinct_attributes and len({fact.attribute.label for fact in sampler.facts}) < len(sampler.facts):
            sampler.facts.pop()
        fruitless = fruitless + 1 if len(sampler.facts) == before else 0
        if fruitless > MAX_TRIES:
            raise ConfigError(f"no room for {num_facts} distinct facts in one record; ask for at most {before}")
    return sampler.facts
