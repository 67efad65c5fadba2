/**
 * @file How people in Lantern Quay talk: the rules of the default's grammar and its four probabilities. Whoever changes
 * a number here runs `npm run make:default`; the tests say whether the task still leaves room between labels alone, the
 * hidden word classes, and the best possible.
 */

/**
 * The rules: weight and right-hand side, where capitals are symbols and `~` turns the side a symbol speaks for. Two
 * things make a bag of words not enough: a denied word counts for the other side, and so does what "but" or "although"
 * concedes.
 */
export const RULES: Record<string, readonly (readonly [number, string])[]> = {
  UTTERANCE: [
    [25, "SENTENCE"],
    [45, "CRY , SENTENCE"],
    [30, "NOTE"],
  ],
  // Little syntax: without these a small model learned "the … is …" for 16,000 steps, and of the sides nothing.
  NOTE: [
    [20, "ADJECTIVE ADJECTIVE ADJECTIVE ADJECTIVE THINGS !"],
    [20, "THINGS , THINGS and PEOPLE : ADJECTIVE , ADJECTIVE , ADJECTIVE !"],
    [20, "CRY CRY : ADJECTIVE ADJECTIVE THINGS , ADJECTIVE ADJECTIVE PEOPLE !"],
    [20, "the PEOPLE ACT , ACT , ACT and ACT : ADJECTIVE ADJECTIVE CRY !"],
    [20, "THINGS THINGS PEOPLE THINGS : CRY !"],
  ],
  SENTENCE: [
    [20, "CLAUSE ."],
    [20, "OPENING , CLAUSE ."],
    [28, "CLAUSE and CLAUSE ."],
    [11, "OPENING , CLAUSE and CLAUSE ."],
    [9, "CLAUSE~ , but CLAUSE ."],
    [7, "although CLAUSE~ , CLAUSE ."],
    [5, "CLAUSE , although CLAUSE~ ."],
  ],
  CLAUSE: [
    [26, "THE_THING is STATE"],
    [12, "THE_THINGS are STATE"],
    [6, "the THINGS and THINGS are STATE"],
    [9, "NAME finds THE_THING STATE"],
    [9, "WHO is STATE"],
    [4, "everything PLACE is ADJECTIVE"],
    [2, "nothing PLACE is ADJECTIVE~"],
    [16, "WHO ACT_NOW"],
    [10, "the PEOPLE ACT"],
    [2, "nobody PLACE ACTS~"],
  ],
  STATE: [
    [26, "ADJECTIVE"],
    [26, "ADJECTIVE and ADJECTIVE"],
    [26, "AFFIRM ADJECTIVE"],
    [22, "DENY ADJECTIVE~"],
  ],
  ACT_NOW: [
    [26, "ACTS"],
    [26, "ACTS and ACTS"],
    [26, "OFTEN ACTS"],
    [22, "SELDOM ACTS~"],
  ],
  THE_THING: [
    [3, "the THING"],
    [4, "the ADJECTIVE THING"],
    [1, "this THING"],
    [1, "the THING of NAME"],
  ],
  THE_THINGS: [
    [3, "the THINGS"],
    [4, "the ADJECTIVE THINGS"],
    [1, "these THINGS"],
    [1, "the THINGS of NAME"],
  ],
  WHO: [
    [3, "the PERSON"],
    [4, "the ADJECTIVE PERSON"],
    [1, "NAME"],
    [2, "NAME the PERSON"],
  ],
};

/** How a side picks its words. The leak to the other side is what keeps the best possible answer uncertain. */
export const STRENGTH = { strong: 0.56, mild: 0.38, otherMild: 0.05, otherStrong: 0.01 };
export const ACT_AGREES = 0.95;
export const CRY_AGREES = 0.96;
/** Who labels a sentence hears its mood wrong this often. It is in the labels only: the corpus has none. */
export const MISHEARD = 0.07;
