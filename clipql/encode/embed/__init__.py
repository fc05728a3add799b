"""Collections of pictures and captions into LAION parts, which `ingest` takes in (`clipql embed`)."""

from clipql.encode.embed.run import EmbedProgress, EmbedReport, embed_captions, embed_pictures

__all__ = ["EmbedProgress", "EmbedReport", "embed_captions", "embed_pictures"]
