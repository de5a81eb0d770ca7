-- The demo's world: a village of forty-eight people, stories about them, and questions that no story asks.
-- Everything follows from the seed. make(seed, stories) -> {
--   documents = list of stories, train = {{prompt, completion}, ...} about most people, held_out = the same about the others }
-- Whoever learns to answer from `train` can answer `held_out` only with what the stories told.
local core = require "onn.core.ops"

local women = { "Ada", "Berta", "Clara", "Dora", "Edith", "Frida", "Greta", "Hanna", "Ida", "Julia", "Klara", "Lena", "Mara", "Nora",
  "Olga", "Paula", "Rosa", "Selma", "Tilda", "Ulla", "Vera", "Wanda", "Yola", "Zita" }
local men = { "Anton", "Bruno", "Carl", "David", "Emil", "Felix", "Georg", "Hugo", "Ivan", "Jonas", "Konrad", "Leo", "Max", "Nils",
  "Otto", "Peter", "Rolf", "Simon", "Theo", "Urs", "Viktor", "Walter", "Xaver", "Zeno" }
local jobs = { "baker", "miller", "smith", "weaver", "potter", "fisher", "teacher", "doctor", "gardener", "carpenter", "painter",
  "tailor", "shepherd", "beekeeper", "sailor", "singer" }
local homes = { "in the mill", "in the old tower", "in the red house", "on a boat", "in the forest", "by the market", "at the harbour",
  "on the hill", "in the lighthouse", "in a green cottage", "in the castle", "near the bridge" }
local colours = { "black", "white", "grey", "brown", "golden", "spotted" }
local animals = { "cat", "dog", "goat", "horse", "hen", "duck", "owl", "rabbit", "donkey", "crow" }
local foods = { "plum cake", "bean soup", "fresh bread", "apple pie", "goat cheese", "honey toast", "roast fish", "mushroom stew",
  "pear jam", "nut cookies", "onion soup", "cherry tart" }

-- What is asked about a person: the question, and the answer as a template. No answer names the person: a name that no training
-- answer has would be hard to write, whatever is known about it.
local questions = {
  { "What work does {name} do?", "a {job}." },
  { "Where does {name} live?", "{home}." },
  { "Which animal does {name} have?", "a {pet}." },
  { "What does {name} like to eat?", "{food}." },
  { "Which friend does {name} visit?", "{friend}." },
}

-- Sentences that tell a fact, several ways each, so that it is learnt as a fact and not as one string.
local facts = {
  { "{name} is a {job}.", "{name} works as a {job}.", "Everybody knows {name}, the {job}.", "{name} is known as a good {job}.",
    "In the village {name} is the {job}." },
  { "{name} lives {home}.", "The home of {name} is {home}.", "{name} has a small room {home}.", "{name} has always lived {home}.",
    "At night {name} sleeps {home}." },
  { "{name} has a {pet}.", "{name} takes care of a {pet}.", "{name} owns a {pet}.", "Every morning {name} feeds a {pet}.",
    "{name} walks with a {pet}." },
  { "{name} likes {food}.", "{name} likes to eat {food}.", "For supper {name} eats {food}.", "{name} never says no to {food}.",
    "The best meal for {name} is {food}." },
  { "The best friend of {name} is {friend}.", "{name} often visits {friend}.", "{name} tells every secret to {friend}.",
    "{name} and {friend} are best friends.", "On Sunday {name} meets {friend}." },
}

local openings = { "It was a {weather} {time}.", "One {weather} {time} {name} woke up early.", "This is a story about {name}.",
  "It was {weather}, and {name} stayed at home.", "{name} was {mood} that {time}.", "Listen to what happened to {name}.",
  "The {time} was {weather} and {name} was {mood}." }
local events = { "Then the wind blew and {name} lost the {thing}.", "{They} found a {thing} on the road.", "Suddenly {they} heard a bell.",
  "{They} looked for the {thing} all day.", "After a while it began to rain.", "{They} sang a song and danced.",
  "The children laughed when they saw {name}.", "{They} sat down and looked at the clouds.",
  "{They} gave the {thing} to an old man.", "A bird stole the {thing} and flew away." }
local endings = { "In the end {name} was {mood}.", "Then {name} went home.", "{They} slept well that night.", "And {they} smiled.",
  "The next day everything was quiet.", "{name} will never forget that {time}.", "So the {time} ended." }
local words = {
  weather = { "sunny", "rainy", "windy", "cold", "warm", "foggy", "snowy", "bright" },
  time = { "morning", "day", "evening", "afternoon", "night" },
  mood = { "happy", "tired", "hungry", "proud", "sad", "calm", "curious", "merry" },
  thing = { "hat", "key", "basket", "letter", "ring", "lamp", "shoe", "coin", "map", "button" },
}

local corpus = {}

-- A source of random numbers: draw(n) gives 1..n, the same ones for the same seed.
local function source(seed)
  local drawn = 0
  return function(n)
    drawn = drawn + 1
    return math.floor(core.random(seed, "demo", drawn) * n) + 1
  end
end

local function one_of(list, draw) return list[draw(#list)] end

local function shuffle(list, draw)
  for i = #list, 2, -1 do
    local j = draw(i)
    list[i], list[j] = list[j], list[i]
  end
  return list
end

local function village(draw)
  local people = {}
  for _, group in ipairs { { women, "she", "She" }, { men, "he", "He" } } do
    for _, name in ipairs(group[1]) do
      people[#people + 1] = { name = name, they = group[2], They = group[3], job = one_of(jobs, draw), home = one_of(homes, draw),
        pet = one_of(colours, draw) .. " " .. one_of(animals, draw), food = one_of(foods, draw) }
    end
  end
  shuffle(people, draw)
  for i, person in ipairs(people) do person.friend = people[i % #people + 1].name end
  return people
end

-- Fills {name} and the like from the person, and {weather} and the like with any such word.
local function fill(template, person, draw)
  return (template:gsub("{(%a+)}", function(key) return person[key] or one_of(words[key], draw) end))
end

local function story(person, draw)
  local sentences, told = { one_of(openings, draw) }, shuffle({ 1, 2, 3, 4, 5 }, draw)
  local here = setmetatable({ time = one_of(words.time, draw), thing = one_of(words.thing, draw) }, { __index = person })
  for i = 1, 1 + draw(3) do
    sentences[#sentences + 1] = one_of(facts[told[i]], draw)
    if draw(3) == 1 then sentences[#sentences + 1] = one_of(events, draw) end
  end
  sentences[#sentences + 1] = one_of(endings, draw)
  for i, sentence in ipairs(sentences) do sentences[i] = fill(sentence, here, draw) end
  return table.concat(sentences, " ")
end

function corpus.make(seed, stories)
  local draw = source(seed)
  local people, made = village(draw), { documents = {}, train = {}, held_out = {} }
  for i = 1, stories do made.documents[i] = story(people[i % #people + 1], draw) end
  for i, person in ipairs(people) do
    local set = i % 4 == 0 and made.held_out or made.train
    for _, question in ipairs(questions) do
      set[#set + 1] = { prompt = "Question: " .. fill(question[1], person) .. " Answer:", completion = " " .. fill(question[2], person) }
    end
  end
  shuffle(made.documents, draw)
  return made
end

return corpus
