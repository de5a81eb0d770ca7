-- An example -> the text that is trained and which bytes of it count.
local Jinja = require "onn.jinja"
local json = require "onn.core.json"

local Template = {}
Template.__index = Template

local function read_file(path)
  local file = not path:find "[\n{]" and io.open(path, "rb")
  if not file then return nil end
  local content = file:read "*a"
  file:close()
  return content
end

-- new(opt, tokenizer): opt.template is a file or text, with {prompt} and {completion} or as Jinja; opt.loss "all" or
-- "completion". Returns the template, or nil, message, code.
function Template.new(opt, tokenizer)
  local self = setmetatable({ loss = opt.loss, tokenizer = tokenizer, only_last = 0 }, Template)
  local source = opt.template
  if source then
    source = read_file(source) or source
    if source:find("{{", 1, true) or source:find("{%", 1, true) then
      local message, code
      self.jinja, message, code = Jinja.compile(source, "--template")
      if not self.jinja then return nil, message, code end
    elseif source:find("{completion}", 1, true) or source:find("{prompt}", 1, true) then
      self.fields = source
    else
      return nil, ("--template: '%s' is no file and has no {prompt} or {completion}"):format(source:sub(1, 80)), "argument"
    end
  end
  return self
end

function Template:chat_template()
  if self.jinja then return self.jinja end
  if not self.chat then
    local source = self.tokenizer.chat_template
    if not source then return nil, "the tokenizer has no chat template; give one with --template FILE" end
    local message
    self.chat, message = Jinja.compile(source, "chat template")
    if not self.chat then return nil, message end
  end
  return self.chat
end

local function starts_with(text, head) return text:sub(1, #head) == head end

-- With the end token, unless the text already ends with it.
function Template:ended(text)
  local mark = self.tokenizer.eos_token
  if not mark or mark == "" or text:sub(-#mark) == mark then return text end
  return text .. mark
end

local function render(self, template, messages, count, generation, example)
  local part = {}
  for i = 1, count do part[i] = messages[i] end
  return template:render {
    messages = json.array(part), tools = example.tools or json.null, add_generation_prompt = generation,
    bos_token = self.tokenizer.bos_token or "", eos_token = self.tokenizer.eos_token or "",
    prompt = example.prompt, completion = example.completion,
  }
end

-- The bytes of the assistant's turns: { first, last, ... } pairs of 0-based offsets, `last` left out; or nil, message.
local function assistant_spans(self, template, messages, text, example)
  local spans, clean, last_turn = {}, true, nil
  for i = (example.prompt_messages or 0) + 1, #messages do
    if messages[i].role == "assistant" then
      last_turn = i
      local head, message = render(self, template, messages, i - 1, true, example)
      if not head then return nil, message end
      local whole = text
      if i < #messages then whole, message = render(self, template, messages, i, false, example) end
      if not whole then return nil, message end
      clean = clean and starts_with(text, head) and starts_with(text, whole) and #whole > #head
      spans[#spans + 1], spans[#spans + 2] = #head, #whole
    end
  end
  if not last_turn then return nil, "there is no message of the assistant to train on" end
  if clean then return spans end
  -- The template shows earlier turns differently once others follow: only the end of the text can be told apart.
  local head, message = render(self, template, messages, last_turn - 1, true, example)
  if not head then return nil, message end
  if last_turn < #messages or not starts_with(text, head) then
    return nil, "the chat template rewrites earlier turns, so the assistant's part cannot be found; use --loss all"
  end
  self.only_last = self.only_last + 1
  return { #head, #text }
end

local function chat_example(self, example)
  local template, message = self:chat_template()
  if not template then return nil, message end
  local text
  text, message = render(self, template, example.messages, #example.messages, false, example)
  if not text then return nil, message end
  local spans = { 0, #text }
  if self.loss ~= "all" then
    spans, message = assistant_spans(self, template, example.messages, text, example)
    if not spans then return nil, message end
  end
  return { text = text, spans = spans, bos = false }
end

-- {prompt}, {completion} and {text} filled in; the first {completion} divides what is given from what is trained.
local function fill_fields(self, example)
  local values = { prompt = example.prompt or "", completion = example.completion or "", text = example.text or "" }
  local function fill(part) return (part:gsub("{(%l+)}", values)) end
  local at = self.fields:find("{completion}", 1, true)
  local head = at and fill(self.fields:sub(1, at - 1)) or ""
  return head, fill(self.fields:sub(at or 1))
end

local function pair_parts(self, example)
  if self.fields then return fill_fields(self, example) end
  local prompt, completion = example.prompt, example.completion
  local space = (prompt == "" or prompt:find "%s$" or completion:find "^%s") and "" or " "
  return prompt, space .. completion
end

-- apply(example): { text, spans, bos }, where spans = { first, last, ... } are the 0-based byte ranges that count, `last` left
-- out, and bos says whether the tokenizer adds its first token; or nil, message.
function Template:apply(example)
  if example.messages then return chat_example(self, example) end
  if example.text and not self.fields then
    if self.loss == "completion" then return nil, "'text' has no completion; use --loss all, or pairs" end
    local text = self:ended(example.text)
    return { text = text, spans = { 0, #text }, bos = true }
  end
  if self.jinja then
    return chat_example(self, { prompt = example.prompt, completion = example.completion, messages = {
      { role = "user", content = example.prompt }, { role = "assistant", content = example.completion } } })
  end
  local head, tail = pair_parts(self, example)
  local text = self:ended(head .. tail)
  return { text = text, spans = { (self.loss == "all" or example.text) and 0 or #head, #text }, bos = true }
end

return Template
