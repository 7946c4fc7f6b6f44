// Prompt lookup: what followed the last tokens when they occurred before.

const MAX_NGRAM = 3;

// The longest of the last n-grams that occurred earlier wins, its most recent occurrence first.
export function continuation(tokens, count) {
  for (let n = Math.min(MAX_NGRAM, tokens.length - 1); n > 0; n -= 1) {
    const end = tokens.length - n;
    for (let start = end - 1; start >= 0; start -= 1) {
      if (tokens.slice(end).every((token, i) => tokens[start + i] === token)) {
        return tokens.slice(start + n, start + n + count);
      }
    }
  }
  return [];
}
