-- Apertus 1.5's text model: apertus.
return {
  name = "apertus1p5_text",
  model_types = { "apertus1p5_text" },
  base = "apertus",
}
