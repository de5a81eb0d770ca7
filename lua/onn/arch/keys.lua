-- Keys of a config.json that no family needs to read: what they say leaves the arithmetic of a forward pass and its gradients alone.
-- Every other key that a family has not read may change the arithmetic, and is refused by name (arch.describe).
local values = require "onn.arch.config"

local keys = {}

local function set(text)
  local names = {}
  for name in text:gmatch "%S+" do names[name] = true end
  return names
end

-- Names, ids, labels, storage, training and generation.
local harmless = set [[
  model_type architecture architectures auto_map _name_or_path name_or_path transformers_version _commit_hash tokenizer_class prefix
  finetuning_task problem_type task_specific_params id2label label2id num_labels license model_max_length tokenizer_model_max_length
  torch_dtype dtype use_bfloat16 torchscript return_dict output_attentions output_hidden_states output_scores output_router_logits
  output_past use_return_dict use_cache cache_implementation gradient_checkpointing pruned_heads tie_encoder_decoder tf_legacy_loss
  attn_implementation _attn_implementation _attn_implementation_internal _attn_implementation_autoset experts_implementation
  _experts_implementation_internal use_flash_attn use_flash_attention flash_attn _flash_attn_2_enabled flash_attn_bias_type fused_dropout_add_ln
  use_flash_norm use_mamba_kernels use_kernels use_cuda use_triton fused_bias_fc fused_mlp fused_residual_and_norm onnx_safe use_liger
  pretraining_tp slow_but_exact init_device verbose seed training_args unsloth_version unsloth_fixed neftune_noise_alpha
  initializer_range initializer_factor initializer_cutoff_factor init_std init_scale init_method embedding_initializer_range rescale_prenorm_residual
  use_scan gate_init router_aux_loss_coef aux_loss_alpha seq_aux router_z_loss_coef z_loss_coeff router_jitter_noise jitter_noise
  input_jitter_noise num_nextn_predict_layers mtp_loss_weight chunk_size_feed_forward max_batch_size
  bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id decoder_start_token_id eod_token_id
  image_token_id video_token_id audio_token_id image_token_index boi_token_id eoi_token_id boa_token_id eoa_token_id vision_start_token_id
  vision_end_token_id vision_token_id boi_token_index eoi_token_index mm_tokens_per_image vision_config audio_config text_config
  max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
  repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
  return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
  begin_suppress_tokens generation_config keys_to_ignore_at_inference cross_attention_hidden_size
  summary_activation summary_type summary_use_proj summary_proj_to_labels summary_last_dropout summary_first_dropout
  classifier_activation ep_size max_seq_length seq_length n_ctx init_config is_llama_config transformers.js_config
  attention_softmax_in_fp32 scale_attention_softmax_in_fp32 bias_dropout_fusion masked_softmax_fusion offset_alibi skip_bias_add
  skip_bias_add_qkv embedding_fraction qk_head_dim residual_in_fp32 use_associative_scan use_mambapy use_fast_path sparse_pred_ignore_index
  sparse_prediction num_logits_to_keep
]]

-- Only the shapes of tensors follow from these, and shapes are checked.
local in_shapes = set [[
  vocab_size tie_word_embeddings type_vocab_size head_dim d_kv intermediate_size d_ff num_hidden_layers max_position_embeddings
  n_positions vocab_size_per_layer_input padded_vocab_size original_vocab_size num_key_value_heads n_embed n_embd
  task_type_vocab_size time_step_rank
]]

-- Parts of names of what acts in training only.
local patterns = { "dropout", "drop_rate$", "_pdrop$", "^pdrop_", "_drop$", "layerdrop$", "_loss_", "loss_coef", "^fsdp", "^deepspeed" }

-- What has its meaning under another key only: that one was read.
local under = {
  sliding_window = { "use_sliding_window" }, max_window_layers = { "use_sliding_window", "layer_types" },
  sliding_window_pattern = { "layer_types" }, _sliding_window_pattern = { "layer_types" },
  rope_scaling = { "rope_parameters" }, rope_theta = { "rope_parameters" }, partial_rotary_factor = { "rope_parameters" },
  rotary_pct = { "rope_parameters" }, rotary_emb_base = { "rope_parameters" }, rope_local_base_freq = { "rope_parameters" },
  original_max_position_embeddings = { "rope_parameters" }, no_rope_layer_interval = { "no_rope_layers" },
  full_attention_interval = { "layer_types" }, attention_types = { "attention_layers" }, num_local_experts = { "num_experts" },
  num_attention_heads = { "n_head", "n_heads", "num_heads" }, n_head = { "num_attention_heads" }, n_layer = { "num_hidden_layers" },
  hidden_act = { "hidden_activation", "activation_function" }, activation_function = { "hidden_act" },
  dense_act_fn = { "feed_forward_proj" }, is_gated_act = { "feed_forward_proj" },
}

-- Values at which a key says what every family does without it; false is one too, but for the loud keys.
local loud = set "scale_attn_weights norm_topk_prob use_parallel_residual parallel_attn causal is_causal use_rotary do_layer_norm_before"
local neutral_at = { scale_attn_weights = true, position_embedding_type = "absolute", moe_layer_freq = 1, decoder_sparse_step = 1 }

-- The same for one net, or for one family that does nothing else.
local of_net = { decoder = { is_decoder = true, causal = true, is_causal = true },
  encoder_decoder = { is_encoder_decoder = true } }
local any = {} -- whatever it is
local first_steps = { time_step_min = any, time_step_max = any, time_step_floor = any, time_step_init_scheme = any, time_step_scale = any,
  chunk_size = any } -- of first weights, or of how a scan is cut
local of_family = {
  mamba = first_steps, falcon_mamba = first_steps, mamba2 = first_steps,
  distilbert = { sinusoidal_pos_embds = any }, -- the table of places is stored
  mpt = { learned_pos_emb = true, norm_type = "low_precision_layernorm" }, gpt_oss = { swiglu_alpha = 1.702 },
  starcoder2 = { mlp_type = "default", norm_type = "layer_norm" }, deepseek_v2 = { scoring_func = "softmax" },
  deepseek_v3 = { scoring_func = "sigmoid", topk_method = "noaux_tc" },
}

local function is_neutral(key, value, family)
  if value == false and loud[key] then return false end
  if value == nil or value == false or value == 0 or value == "" or value == neutral_at[key] then return true end
  local net, own = of_net[family.net or "decoder"] or {}, of_family[family.name] or {}
  if value == net[key] or value == own[key] or own[key] == any then return true end
  if type(value) == "table" then return next(value) == nil end
  -- multipliers of one
  return value == 1 and (key:find "multiplier" or key:find "scal" or key:find "factor") and true or false
end

local function is_harmless(key)
  if harmless[key] or in_shapes[key] then return true end
  for _, pattern in ipairs(patterns) do if key:find(pattern) then return true end end
  return false
end

-- A table that stands for `config` and notes in `read` which of its keys are asked for. What pairs() goes over is not there.
function keys.recorded(config, read)
  return setmetatable({}, { __index = function(_, key)
    read[key] = true
    return config[key]
  end })
end

local function plain(key) return (key:sub(1, 60):gsub("%c", "?")) end

-- What the rotary embedding is made of (onn.nn.rope), and what says nothing of text alone.
local rotary = set [=[ rope_type type rope_theta factor attention_factor low_freq_factor high_freq_factor beta_fast beta_slow mscale mscale_all_dim
  short_factor long_factor original_max_position_embeddings partial_rotary_factor truncate finetuned mrope_section mrope_interleaved
  full_attention sliding_attention max_position_embeddings ]=]

local function unread_rotary(config, wrong, family)
  local name = config.rope_parameters and "rope_parameters" or "rope_scaling"
  local function look(given, path)
    if type(given) ~= "table" then return end
    local names = {}
    for key in pairs(given) do if type(key) == "string" then names[#names + 1] = key end end
    table.sort(names)
    for _, key in ipairs(names) do
      if not (rotary[key] or family.rotary and family.rotary[key]) and not is_neutral(key, given[key], family) then
        wrong[#wrong + 1] = ("config.json: '%s.%s' = %s is not known; it may change the arithmetic"):format(path, plain(key),
          values.shown(given[key]))
      end
    end
  end
  local given = config[name]
  look(given, name)
  if type(given) == "table" then
    look(given.full_attention, name .. ".full_attention")
    look(given.sliding_attention, name .. ".sliding_attention")
  end
end

-- The lines for keys of `config` that were not read (read: set of names), are not harmless, and whose values say something.
function keys.unread(config, read, family)
  local wrong, names = {}, {}
  for key in pairs(config) do if type(key) == "string" then names[#names + 1] = key end end
  table.sort(names)
  for _, key in ipairs(names) do
    local settled = false
    for _, other in ipairs(under[key] or {}) do settled = settled or read[other] and config[other] ~= nil end
    local own = family.only and family.only[key] ~= nil
    if not (read[key] or own or settled or is_harmless(key) or is_neutral(key, config[key], family)) then
      wrong[#wrong + 1] = ("config.json: '%s' = %s is not known for %s; it may change the arithmetic (--set %s=null runs without it)"):format(
        plain(key), values.shown(config[key]), family.name, plain(key))
    end
  end
  if read.rope_parameters or read.rope_scaling then unread_rotary(config, wrong, family) end
  return wrong
end

return keys
