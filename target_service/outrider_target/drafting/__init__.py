"""Where a sequence's draft tokens come from: remote draft services, prompt lookup, or nowhere."""
