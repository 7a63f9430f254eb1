// Two prompts word by word.

/** What leads from one prompt to the other: [{ kind: "same" | "gone" | "new", word }], in reading order. */
export function difference(source, target) {
  const from = source.split(/\s+/).filter(Boolean)
  const to = target.split(/\s+/).filter(Boolean)
  const length = Array.from({ length: from.length + 1 }, () => new Uint16Array(to.length + 1))
  for (let i = from.length - 1; i >= 0; i--) {
    for (let j = to.length - 1; j >= 0; j--) {
      length[i][j] = from[i] === to[j] ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1])
    }
  }
  const parts = []
  let i = 0
  let j = 0
  while (i < from.length || j < to.length) {
    if (i < from.length && j < to.length && from[i] === to[j]) {
      parts.push({ kind: "same", word: from[i] })
      i++
      j++
    } else if (i < from.length && (j === to.length || length[i + 1][j] >= length[i][j + 1])) {
      parts.push({ kind: "gone", word: from[i++] })
    } else {
      parts.push({ kind: "new", word: to[j++] })
    }
  }
  return parts
}

const bare = (word) => word.toLowerCase().replace(/[^\p{L}\p{N}]/gu, "")

/** How much a word was amplified, 0 to 1, from the tokens' weights [[label, weight], …]; null when it was not. */
export function weightOf(word, tokens) {
  const weights = tokens.filter(([label]) => bare(label) && bare(word).includes(bare(label))).map(([, weight]) => weight)
  return weights.length ? Math.max(...weights) : null
}
