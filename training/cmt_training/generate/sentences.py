"""Sentences out of a grammar: templates with slots. Templates and most words of a slot belong to one split alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from cmt_training.examples import Split
from cmt_training.generate.options import NEUTRAL

CLEAR = 0.5  # strength from which a sentence names its emotion
HINTING = 0.22  # strength from which it leaves two to four emotions open; below, it says nothing
#: Of the templates, and of the words of every slot.
TEST_SHARE = 0.27
VALIDATION_SHARE = 0.2

#: emotion -> sentences that bear it.
BEARING: dict[str, tuple[str, ...]] = {
    "surprise": (
        "You never told me that {person} moved!",
        "Oh! I didn't see you there!",
        "Hold on, {thing} is {unexpected}?",
        "What a surprise, {person}!",
        "I am speechless, look at that!",
        "Whoa, where did you get {thing}?",
        "Really? It was {person} all along?",
        "Wow, I never expected {thing}!",
        "What? Since when do you have {thing}?",
        "Oh my, where did {person} come from?",
        "No way, {person} is really here?",
        "I had {no} idea about {thing}!",
        "Whoa, that is so {unexpected}!",
        "Wait, {person} did what?",
        "You are kidding, {person} said yes?",
        "How on earth did {person} know?",
        "That came out of nowhere!",
        "Seriously? I thought {person} left!",
        "Oh, you are here already?",
        "This is {unexpected}, I must say!",
        "Huh, who would have guessed?",
        "My goodness, look at {thing}!",
    ),
    "fear": (
        "I am so {scared}, hold my hand.",
        "Watch out, it is dangerous!",
        "There is a stranger in the {dark_place}.",
        "Oh god, we will all die!",
        "{Person} has a gun, get down!",
        "I am {scared} that {person} finds out.",
        "Don't go in there, I beg you!",
        "Please don't hurt me!",
        "I am so {scared} right now.",
        "Something is moving in the {dark_place}.",
        "Help, I hear someone in the {dark_place}!",
        "I am {scared} of {person}.",
        "Run, it is coming closer!",
        "Don't leave me alone in the {dark_place}.",
        "What if {person} dies?",
        "I can't stop shaking.",
        "Oh no, we are in {danger}!",
        "There is {danger} everywhere, hide!",
        "I am too {scared} to look.",
        "They will find us here.",
        "Is someone following us?",
        "Get me out of this {dark_place}, please!",
    ),
    "sadness": (
        "I lost {loved} last year.",
        "I cried all night.",
        "It is so {sad} here without you.",
        "{Person} doesn't love me any more.",
        "I feel {sad} and tired.",
        "Saying goodbye to {loved} was hard.",
        "Why does it hurt so much?",
        "I miss {person} so much.",
        "I feel so {sad} tonight.",
        "{Person} is gone and I am alone.",
        "I just want to cry.",
        "We lost {loved}, I am sorry.",
        "Nobody came to my birthday.",
        "I am {sad} without {person}.",
        "It hurts that {person} left.",
        "I will never see {loved} again.",
        "Everything is {sad} since the funeral.",
        "I have nothing left.",
        "My heart is broken.",
        "I wish {person} were still here.",
        "I am so sorry about {loved}.",
        "I can't do it any more.",
    ),
    "joy": (
        "Yay, {person} is coming home!",
        "I am the luckiest person alive!",
        "Ha, that was {great}!",
        "It is {great} to be here with you.",
        "I have never been so {happy}!",
        "Thank you, I love it!",
        "Let us celebrate, I passed!",
        "This is {great}, I am so {happy}!",
        "I love {thing}, thank you!",
        "We won, this is {great}!",
        "I am so {happy} to see {person}!",
        "What a {great} day!",
        "Yes, I got the job!",
        "{Person} and I had a {great} time!",
        "That is the best news ever!",
        "Congratulations, I am {happy} for you!",
        "I can't stop smiling, it is {great}.",
        "Hooray, we did it!",
        "You make me so {happy}.",
        "Aww, that is so sweet!",
        "We are having a baby!",
        "I feel {great} about {thing}!",
    ),
    "disgust": (
        "Ugh, this is {gross}.",
        "Ew, what did you put in the {food}?",
        "That bathroom is {gross}.",
        "Oh, it smells like a dead fish.",
        "He spat on the {food}, yuck.",
        "I feel sick when I see {food} like that.",
        "Get that {gross} thing off my plate.",
        "Ew, that smells {gross}.",
        "This {food} tastes {gross}.",
        "Yuck, there is hair in the {food}.",
        "That is {gross}, take it away.",
        "I am going to be sick.",
        "Ugh, don't touch that {gross} thing.",
        "Who left this rotten {food} here?",
        "That stinks, open a window.",
        "I won't eat that {gross} {food}.",
        "Ew, he licked it!",
        "There is mould on the {food}.",
        "How {gross}, clean it up.",
        "Ugh, he picks his nose.",
        "It makes my stomach turn.",
        "That {food} crawled with maggots.",
    ),
    "anger": (
        "I am so {angry} I could scream!",
        "You always do this to me!",
        "Leave, I don't want to see you!",
        "Who do you think you are?",
        "You broke {thing}, you {liar}!",
        "I am {angry} about {thing}!",
        "Just shut your mouth!",
        "Stop it, I am {angry}!",
        "How dare you touch {thing}!",
        "Get out of my house!",
        "I am {angry} with {person}!",
        "You {liar}, I trusted you!",
        "Shut up and leave me alone!",
        "I hate {person}!",
        "This is your fault, you {liar}!",
        "Don't you ever do that again!",
        "I have had enough of {person}!",
        "You ruined {thing}!",
        "Give it back right now!",
        "You had no right to do that!",
        "I am sick of your lies!",
        "Damn it, {person} broke it again!",
    ),
}
#: Sentences that several emotions say.
HINTS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("surprise", "joy", "anger"),
        (
            "I can't believe it!",
            "Is that for me?",
            "You told {person}?",
            "Are you serious?",
            "Did {person} really do that?",
        ),
    ),
    (
        ("surprise", "fear"),
        ("What was that?", "Who is there?", "It just moved!", "Someone opened the door.", "Did you hear that?"),
    ),
    (
        ("joy", "surprise"),
        ("Look at {thing}!", "Is it really you?", "You bought {thing}?", "They picked me!", "Oh my god, {person}!"),
    ),
    (
        ("sadness", "anger"),
        (
            "How could {person} do this?",
            "You forgot about me.",
            "Why me?",
            "{Person} cheated on me.",
            "You lied to me.",
        ),
    ),
    (
        ("fear", "sadness"),
        ("I don't want to go.", "Please stay with me.", "Is {person} hurt?", "I feel ill.", "What will become of us?"),
    ),
    (
        ("disgust", "anger"),
        ("I don't want to see that.", "That man is awful.", "Oh, please.", "Get it off me.", "Take that away from me."),
    ),
    (
        ("disgust", "surprise"),
        (
            "What is that thing?",
            "You ate the {food}?",
            "On the {food}?",
            "You kissed {person}?",
            "He put it in his mouth?",
        ),
    ),
)
#: Sentences that say nothing of an emotion.
PLAIN: tuple[str, ...] = (
    "The meeting is at {time}.",
    "{Person} went to the {place}.",
    "I will be at the {place} at {time}.",
    "We could take the bus.",
    "The keys are on the table.",
    "It is {time} now.",
    "I talked to {person} yesterday.",
    "You can sit over there.",
    "I think so.",
    "Let us go to the {place}.",
    "{Person} called at {time}.",
    "I have to go now.",
    "So this is the {place}.",
    "The train leaves at {time}.",
    "Here is the {food}.",
    "Did you read the paper?",
    "{Person} works at the {place}.",
    "I put the {food} in the kitchen.",
    "That is what {person} told me.",
    "It is on the second floor.",
    "Okay, see you at {time}.",
    "There are four chairs.",
    "Can you pass me the {food}?",
    "Yes, I know {person}.",
    "I need to buy {food}.",
)
#: slot -> words; no split's words are another's.
WORDS: dict[str, tuple[str, ...]] = {
    "person": (
        "Anna",
        "my brother",
        "Tom",
        "my boss",
        "Laura",
        "the neighbour",
        "Paul",
        "my sister",
        "Nina",
        "the coach",
    ),
    "thing": (
        "the car",
        "this letter",
        "my room",
        "the cake",
        "your dress",
        "this house",
        "the ring",
        "that hat",
        "my guitar",
        "the garden",
    ),
    "no": ("no", "really no", "absolutely no", "just no", "simply no"),
    "unexpected": ("unexpected", "sudden", "strange", "unreal", "astonishing"),
    "scared": ("scared", "afraid", "frightened", "nervous", "terrified"),
    "dark_place": ("dark", "basement", "forest", "alley", "attic", "tunnel", "cellar", "shed", "swamp", "cave"),
    "danger": ("danger", "trouble", "fire", "poison", "peril"),
    "sad": ("sad", "lonely", "empty", "hopeless", "miserable"),
    "loved": ("grandma", "our dog", "my father", "the baby", "my best friend"),
    "great": (
        "great",
        "wonderful",
        "amazing",
        "awesome",
        "perfect",
        "lovely",
        "brilliant",
        "excellent",
        "fantastic",
        "marvellous",
    ),
    "happy": ("happy", "glad", "excited", "delighted", "thrilled"),
    "gross": ("gross", "disgusting", "nasty", "foul", "revolting"),
    "food": ("soup", "milk", "sandwich", "cheese", "fish", "salad", "bread", "rice", "butter", "pie"),
    "angry": ("angry", "mad", "so done", "furious", "outraged"),
    "liar": ("liar", "idiot", "jerk", "cheat", "traitor"),
    "time": ("noon", "nine", "five", "eight thirty", "half past two"),
    "place": ("office", "station", "store", "bank", "library"),
}

_SLOT = re.compile(r"\{(\w+)\}")


def sentence(emotion: str, strength: float, split: Split, rng: np.random.Generator) -> str:
    """What somebody says. strength: 0 to 1; a strong one names the emotion, a weak one doesn't."""
    hints = [text for emotions, texts in HINTS if emotion in emotions for text in _part(texts, split)]
    if emotion == NEUTRAL or strength < HINTING:
        templates = _part(PLAIN, split)
    elif strength < CLEAR:
        templates = hints
    else:
        templates = _part(BEARING[emotion], split)
    return _SLOT.sub(lambda match: _word(match[1], split, rng), templates[int(rng.integers(len(templates)))])


def _word(slot: str, split: Split, rng: np.random.Generator) -> str:
    words = _part(WORDS[slot.lower()], split)
    word = words[int(rng.integers(len(words)))]
    return word[0].upper() + word[1:] if slot[0].isupper() else word


def _part(items: Sequence[str], split: Split) -> Sequence[str]:
    """A split's own of a list: its end is the test split's, what stands before that the validation split's."""
    test = len(items) - max(1, round(TEST_SHARE * len(items)))
    validation = test - max(1, round(VALIDATION_SHARE * len(items)))
    return {"train": items[:validation], "validation": items[validation:test], "test": items[test:]}[split]


def misheard(text: str, noise: float, rng: np.random.Generator) -> str:
    """The sentence as a bad transcription has it: words lost and letters wrong. noise: 0 to 1."""
    words = []
    for word in text.split():
        place = rng.random()
        if place < 0.35 * noise:
            continue
        words.append(_mistyped(word, rng) if place < 1.1 * noise else word)
    return " ".join(words) or "..."


def _mistyped(word: str, rng: np.random.Generator) -> str:
    letters = list(word)
    for _ in range(1 + len(letters) // 4):
        place = int(rng.integers(len(letters)))
        kind = int(rng.integers(3))
        if kind == 0 and len(letters) > 2:
            del letters[place]
        elif kind == 1 and place + 1 < len(letters):
            letters[place], letters[place + 1] = letters[place + 1], letters[place]
        else:
            letters[place] = chr(ord("a") + int(rng.integers(26)))
    return "".join(letters)
