// What the panel shows: one object, changed in one place, from which every view draws.

const NOTHING_CHOSEN = new Map()

const NOTHING = Object.freeze({
  status: null, // the server's: which caches there are, and what it can do
  cache: null, // the name of the cache that is shown
  stats: null, // its figures
  total: 0, // how many of its entries answer the filters
  chosen: NOTHING_CHOSEN, // the selected ones, id → entry
  open: null, // { id, entry, error }: the open one; entry is undefined while it is loading, null when it is gone
  going: null, // { cache, ids, final }: entries about to be forgotten; final: it cannot be undone any more
  message: null, // "loading", or the error because of which nothing can be listed
})

// What belongs to the cache that is shown, and goes when another is.
const OF_THE_CACHE = { stats: null, total: 0, chosen: NOTHING_CHOSEN, open: null }

export class State {
  /** draw(now, before): bring every view up to date. */
  constructor(draw) {
    this.draw = draw
    this.now = NOTHING
  }

  /** The one way to change what is shown. Nothing of the cache that was shown outlives a change to another. */
  change(parts) {
    const before = this.now
    const another = "cache" in parts && parts.cache !== before.cache
    this.now = Object.freeze({ ...before, ...(another ? OF_THE_CACHE : {}), ...parts })
    this.draw(this.now, before)
  }

  /**
   * Take over what a request about a cache answered, unless another cache is shown by now.
   * parts: what changes, or what says so from the state at hand.
   */
  learn(cache, parts) {
    if (cache === this.now.cache) this.change(typeof parts === "function" ? parts(this.now) : parts)
  }
}
