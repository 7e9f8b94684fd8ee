"""The web page of `cmsa-fast serve`; only `layout` imports Gradio."""
