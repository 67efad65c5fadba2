/**
 * @file The words of the default's little world, Lantern Quay: what there is, who lives there, what the sky does, and
 * the words that take sides. The last are what the task is about. Most of them never occur in the few labelled
 * sentences, but in the unlabelled text those of one side keep each other's company, and that is what pretraining can
 * learn and a random start cannot. Plain English on purpose, so that a reader can check the labels by eye.
 */

/** A subject to talk about: it decides the nouns, and says nothing about the mood. */
export interface Topic {
  readonly things: readonly string[];
  readonly people: readonly string[];
  readonly places: readonly string[];
}

export interface World {
  readonly topics: readonly Topic[];
  /** Each weather's openings. */
  readonly weathers: readonly (readonly string[])[];
  /** Names are a beginning and an ending, as are their word pieces. */
  readonly names: { readonly beginnings: readonly string[]; readonly endings: readonly string[] };
  readonly adjectives: {
    readonly delightful: readonly string[];
    readonly pleasant: readonly string[];
    readonly poor: readonly string[];
    readonly dreadful: readonly string[];
  };
  /** What people do when they are glad or sad. */
  readonly acts: { readonly glad: readonly string[]; readonly sad: readonly string[] };
  /** What people call out in unlabelled text: few, frequent, and plain about the mood. */
  readonly cries: { readonly glad: readonly string[]; readonly sad: readonly string[] };
  /** Before an adjective: keeps its side, or turns it round. */
  readonly affirm: readonly string[];
  readonly deny: readonly string[];
  /** Before a verb: the same. */
  readonly often: readonly string[];
  readonly seldom: readonly string[];
}

const list = (words: string): string[] => words.trim().split(/\s+/);

export const LANTERN_QUAY: World = {
  topics: [
    {
      things: list("boat anchor rope net mast buoy sail gull crane barrel"),
      people: list("captain diver docker"),
      places: ["at the pier", "in the harbour", "by the lighthouse"],
    },
    {
      things: list("bun oven pie crust kettle biscuit waffle ladle pancake noodle"),
      people: list("baker miller cook"),
      places: ["in the bakery", "at the counter", "by the stove"],
    },
    {
      things: list("curtain mask opera puppet drum costume trumpet wig fiddle poem"),
      people: list("singer clown actor"),
      places: ["in the theatre", "at the concert", "by the stage"],
    },
    {
      things: list("hedge pond rose beetle apple fountain snail orchard beehive turnip"),
      people: list("gardener florist shepherd"),
      places: ["in the garden", "at the gate", "by the meadow"],
    },
    {
      things: list("telescope comet moon chart planet lens globe meteor rocket sundial"),
      people: list("stargazer pilot scholar"),
      places: ["in the observatory", "at the eyepiece", "by the dome"],
    },
    {
      things: list("train ticket tunnel bridge signal platform trunk engine timetable wheel"),
      people: list("conductor porter driver"),
      places: ["in the carriage", "at the station", "by the track"],
    },
  ],
  weathers: [
    ["in the fog", "through the mist", "this grey morning", "before the haze lifts"],
    ["in the sunshine", "under blue skies", "this hot noon", "before the sunset"],
    ["in the snow", "over the ice", "this frosty evening", "before the thaw"],
    ["in the rain", "under thunder", "this windy night", "before the flood"],
  ],
  names: { beginnings: list("mar til os bren fen yar quil dov"), endings: list("na vek ro lin sha dric") },
  adjectives: {
    delightful: list(`splendid glorious marvellous delightful radiant superb magnificent wonderful heavenly brilliant
      dazzling exquisite majestic joyous triumphant lovely`),
    pleasant: list(`pleasant tidy gentle decent cosy fresh calm neat cheerful sturdy honest tender quaint kind polite
      sweet`),
    poor: list(`dull stale clumsy dusty crooked noisy shabby bland damp gloomy grumpy soggy sour limp murky
      tedious`),
    dreadful: list(`dreadful horrid rotten ghastly hideous vile wretched awful hopeless cruel appalling foul ruinous
      disastrous revolting beastly`),
  },
  acts: {
    glad: list(`hum whistle laugh dance grin sing giggle skip smile cheer chuckle twirl purr yodel`),
    sad: list(`sigh weep grumble sulk frown scowl mutter groan sob quarrel shiver moan whimper wince`),
  },
  cries: { glad: list("hurrah bravo yippee"), sad: list("alas ugh drat") },
  affirm: list("very truly always so"),
  deny: list("not hardly never scarcely"),
  often: list("always often still usually"),
  seldom: list("never hardly seldom rarely"),
};
