-- onn.store: the safetensors files behind one model, read in place.
--   local store = assert(store.open("model-directory")); print(store:info "model.norm.weight".shape[1])
--   local w = store:read("model.norm.weight", "f32")
return require "onn.core.store"
