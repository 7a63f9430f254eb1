// A grid that only has the tiles on screen, over any number of entries that come in pages.

import { become, h } from "../lib/dom.js"

const PAGE = 100
const GAP = 8
const LEAST_WIDTH = 132
const TEXT_HEIGHT = 62
const ROWS_BEYOND = 2

/**
 * load(offset, limit) → { total, entries }; loaded(total, entries): they came; draw(entry) → element;
 * open(entry), act(key, entries); chosen() → Map id → entry, choose(Map): the selection, which others own; failed(error).
 * The grid owns which entry has the keyboard's focus: after a change it is the same entry, wherever that is by then.
 */
export class Grid {
  constructor({ label, load, loaded, draw, open, act, chosen, choose, failed }) {
    Object.assign(this, { load, loaded, draw, open, act, chosen, choose, failed })
    this.space = h("div", { class: "chorus-grid-space" })
    this.element = h(
      "div",
      { class: "chorus-grid", role: "listbox", "aria-multiselectable": "true", "aria-label": label, tabindex: "-1" },
      this.space,
    )
    this.element.addEventListener("scroll", () => this.later(), { passive: true })
    this.element.addEventListener("keydown", (event) => this.key(event))
    this.sizes = new ResizeObserver(() => this.later())
    this.sizes.observe(this.element)
    this.clear()
  }

  /** Show nothing. */
  clear() {
    this.pages = new Map() // page number → entries, or null while they are loading
    this.tiles = new Map() // id, or #index while that is not known → { element, entry, index }
    this.total = 0
    this.active = 0
    this.activeId = undefined
    this.round = (this.round ?? 0) + 1
    this.space.replaceChildren()
    this.element.scrollTop = 0
  }

  /** Load anew from the beginning. */
  async restart() {
    this.clear()
    await this.page(0)
    this.layout()
  }

  /** Load again what is on screen; what is there stays until the new entries come. */
  async refresh() {
    const { first, last } = this.window()
    const wanted = new Set()
    for (let index = first; index <= last; index++) wanted.add(Math.floor(index / PAGE))
    if (!wanted.size) wanted.add(0)
    this.pages = new Map([...this.pages].filter(([number]) => wanted.has(number)))
    await Promise.all([...wanted].map((number) => this.page(number, true)))
    this.follow()
    this.layout()
  }

  /** Put the keyboard's place on an entry. */
  place(index) {
    this.active = Math.min(Math.max(0, index), Math.max(0, this.total - 1))
    this.activeId = this.at(this.active)?.id
  }

  /** Let the keyboard's place stay on an entry that has moved. */
  follow() {
    const id = this.activeId
    if (this.at(this.active)?.id === id) return
    const places = [...this.pages].map(([number, entries]) => [number, entries?.findIndex((entry) => entry.id === id) ?? -1])
    const [number, within] = places.find(([, within]) => within >= 0) ?? [0, this.active]
    if (id) this.place(number * PAGE + within)
  }

  async page(number, anew = false) {
    if (this.pages.has(number) && !anew) return
    const round = this.round
    if (!this.pages.has(number)) this.pages.set(number, null)
    try {
      const { total, entries } = await this.load(number * PAGE, PAGE)
      if (round !== this.round) return
      this.pages.set(number, entries)
      this.total = total
      this.loaded(total, entries)
      this.later()
    } catch (error) {
      if (round !== this.round) return
      this.pages.delete(number)
      this.failed(error)
    }
  }

  at(index) {
    return this.pages.get(Math.floor(index / PAGE))?.[index % PAGE]
  }

  columns() {
    return Math.max(1, Math.floor((this.element.clientWidth - GAP) / (LEAST_WIDTH + GAP)))
  }

  measure() {
    const columns = this.columns()
    const width = Math.floor((this.element.clientWidth - GAP * (columns + 1)) / columns)
    return { columns, width, height: Math.round(width * 0.62) + TEXT_HEIGHT }
  }

  window() {
    const { columns, height } = this.measure()
    const row = height + GAP
    const first = Math.max(0, Math.floor(this.element.scrollTop / row) - ROWS_BEYOND) * columns
    const rows = Math.ceil(this.element.clientHeight / row) + 2 * ROWS_BEYOND
    return { first, last: Math.min(this.total, first + rows * columns) - 1 }
  }

  later() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = undefined
      this.layout()
    })
  }

  layout() {
    if (!this.element.clientWidth) return
    const focused = this.element.contains(document.activeElement)
    const { columns, width, height } = this.measure()
    const { first, last } = this.window()
    this.space.style.height = `${Math.ceil(this.total / columns) * (height + GAP) + GAP}px`
    const shown = new Map()
    for (let index = first; index <= last; index++) {
      const entry = this.at(index)
      if (!this.pages.has(Math.floor(index / PAGE))) this.page(Math.floor(index / PAGE))
      const key = entry && !shown.has(entry.id) ? entry.id : `#${index}`
      const tile = this.tiles.get(key) ?? this.put()
      shown.set(key, tile)
      this.dress(tile, index, entry)
      const [column, row] = [index % columns, Math.floor(index / columns)]
      Object.assign(tile.element.style, {
        width: `${width}px`,
        height: `${height}px`,
        transform: `translate(${GAP + column * (width + GAP)}px, ${GAP + row * (height + GAP)}px)`,
      })
    }
    for (const [key, tile] of this.tiles) shown.get(key) === tile || tile.element.remove()
    this.tiles = shown
    // The focus of a tile that has gone passes to the one in its place.
    if (focused && !this.element.contains(document.activeElement)) this.tileAt(this.active)?.element.focus({ preventScroll: true })
  }

  tileAt(index) {
    return [...this.tiles.values()].find((tile) => tile.index === index)
  }

  /** Draw every tile anew. */
  redraw() {
    for (const tile of this.tiles.values()) tile.entry = null
    this.layout()
  }

  put() {
    const tile = { element: h("div"), entry: null, index: -1 }
    tile.element.addEventListener("click", (event) => this.click(event, tile.index))
    this.space.append(tile.element)
    return tile
  }

  /** Make a tile the one of `entry`, or of one that is loading, at `index`. */
  dress(tile, index, entry) {
    const { element } = tile
    if (!entry || tile.entry !== entry) {
      const { cssText } = element.style
      become(element, entry ? this.draw(entry) : h("div", { class: "chorus-tile chorus-loading" }))
      element.style.cssText = cssText
    }
    Object.assign(tile, { index, entry })
    element.setAttribute("role", "option")
    element.setAttribute("aria-posinset", index + 1)
    element.setAttribute("aria-setsize", this.total)
    element.setAttribute("aria-selected", String(Boolean(entry && this.chosen().has(entry.id))))
    element.tabIndex = index === this.active ? 0 : -1
  }

  click(event, index) {
    this.place(index)
    const entry = this.at(index)
    if (!entry) return
    if (event.target.closest(".chorus-check") || event.ctrlKey || event.metaKey) this.toggle(entry)
    else if (event.shiftKey) this.extend(index)
    else this.open(entry)
    this.layout()
  }

  toggle(entry) {
    const chosen = new Map(this.chosen())
    if (!chosen.delete(entry.id)) chosen.set(entry.id, entry)
    this.anchor = this.active
    this.choose(chosen)
  }

  extend(index) {
    const from = this.anchor ?? index
    const chosen = new Map(this.chosen())
    for (let i = Math.min(from, index); i <= Math.max(from, index); i++) {
      const entry = this.at(i)
      if (entry) chosen.set(entry.id, entry)
    }
    this.choose(chosen)
  }

  /** Select every entry that answers the query, those not loaded yet too. */
  async all() {
    const round = this.round
    const chosen = new Map(this.chosen())
    for (let number = 0; number * PAGE < this.total; number++) {
      if (!this.pages.get(number)) await this.page(number)
      if (round !== this.round) return
      for (const entry of this.pages.get(number) ?? []) chosen.set(entry.id, entry)
    }
    this.choose(chosen)
  }

  none() {
    this.choose(new Map())
  }

  key(event) {
    const columns = this.columns()
    const screen = Math.max(1, Math.floor(this.element.clientHeight / (this.measure().height + GAP))) * columns
    const moves = {
      ArrowRight: 1,
      ArrowLeft: -1,
      ArrowDown: columns,
      ArrowUp: -columns,
      PageDown: screen,
      PageUp: -screen,
      Home: -this.active,
      End: this.total - 1 - this.active,
    }
    const entry = this.at(this.active)
    if (event.key in moves) this.focus(this.active + moves[event.key])
    else if (event.key === "a" && (event.ctrlKey || event.metaKey)) this.all()
    else if (event.key === "Escape" && this.chosen().size) this.none()
    else if (!entry) return
    else if (event.key === "Enter") this.open(entry)
    else if (event.key === " ") this.toggle(entry)
    else if (!this.act(event.key, this.chosen().size ? [...this.chosen().values()] : [entry])) return
    event.preventDefault()
    event.stopPropagation() // the canvas has shortcuts of its own
  }

  focus(index) {
    this.place(index)
    const { columns, height } = this.measure()
    const top = Math.floor(this.active / columns) * (height + GAP)
    const view = this.element
    if (top < view.scrollTop) view.scrollTop = top
    else if (top + height + 2 * GAP > view.scrollTop + view.clientHeight) view.scrollTop = top + height + 2 * GAP - view.clientHeight
    this.layout()
    this.tileAt(this.active)?.element.focus({ preventScroll: true })
  }
}
