-- Conversations: a tokenizer's chat template turned into prompt text.
local Jinja = require "onn.jinja"

local chat = {}

-- The tokenizer's compiled template, or nil, message, code.
function chat.template(tokenizer)
  if not tokenizer.chat_template then return nil, ("%s has no chat template"):format(tokenizer.path or "the tokenizer"), "unsupported" end
  return Jinja.compile(tokenizer.chat_template, "chat template")
end

-- messages: list of {role, content}. generation: end with the opening of the assistant's turn. Returns text, or nil, message, code.
function chat.render(template, tokenizer, messages, generation)
  return template:render { messages = messages, add_generation_prompt = generation and true or false,
    bos_token = tokenizer.bos_token or "", eos_token = tokenizer.eos_token or "" }
end

return chat
