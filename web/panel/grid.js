// A grid that only has the tiles on screen, over any number of entries that come in pages.

import { h } from "../lib/dom.js"

const PAGE = 100
const GAP = 8
const LEAST_WIDTH = 132
const TEXT_HEIGHT = 62
const ROWS_BEYOND = 2

/**
 * load(offset, limit) → { total, entries }; draw(entry, index) → element; open(entry), act(key, entries).
 * The grid owns which entries are selected and which one has the keyboard's focus.
 */
export class Grid {
  constructor({ label, load, draw, open, act, selected, failed }) {
    Object.assign(this, { load, draw, open, act, selected, failed })
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

  clear() {
    this.pages = new Map() // page number → entries, or a promise of them
    this.tiles = new Map() // index → { element, entry }
    this.chosen = new Map() // id → entry
    this.total = 0
    this.active = 0
    this.round = (this.round ?? 0) + 1
    this.space.replaceChildren()
  }

  /** Load anew from the beginning. */
  async restart() {
    this.clear()
    this.element.scrollTop = 0
    await this.page(0)
    this.selected(this.chosen)
    this.layout()
  }

  /** Load again what is on screen; what is there stays until the new entries come. */
  async refresh() {
    const { first, last } = this.window()
    const wanted = new Set()
    for (let index = first; index <= last; index++) wanted.add(Math.floor(index / PAGE))
    if (!wanted.size) wanted.add(0)
    const old = this.pages
    this.pages = new Map([...old].filter(([number]) => wanted.has(number)))
    await Promise.all([...wanted].map((number) => this.page(number, true)))
    this.layout()
  }

  async page(number, anew = false) {
    if (this.pages.has(number) && !anew) return
    const round = this.round
    if (!this.pages.has(number)) this.pages.set(number, null)
    try {
      const { total, entries } = await this.load(number * PAGE, PAGE)
      if (round !== this.round) return
      this.pages.set(number, entries)
      entries.forEach((entry) => this.chosen.has(entry.id) && this.chosen.set(entry.id, entry))
      this.total = total
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
    for (const [index, tile] of this.tiles) {
      if (index >= first && index <= last && tile.entry === this.at(index)) continue
      tile.element.remove()
      this.tiles.delete(index)
    }
    for (let index = first; index <= last; index++) {
      const entry = this.at(index)
      if (!this.pages.has(Math.floor(index / PAGE))) this.page(Math.floor(index / PAGE))
      const tile = this.tiles.get(index) ?? this.put(index, entry)
      const [column, row] = [index % columns, Math.floor(index / columns)]
      Object.assign(tile.element.style, {
        width: `${width}px`,
        height: `${height}px`,
        transform: `translate(${GAP + column * (width + GAP)}px, ${GAP + row * (height + GAP)}px)`,
      })
      this.mark(index, tile)
    }
    // A tile that was drawn anew must not take the keyboard's focus with it.
    if (focused && !this.element.contains(document.activeElement)) this.tiles.get(this.active)?.element.focus({ preventScroll: true })
  }

  /** Draw every tile anew. */
  redraw() {
    const focused = this.element.contains(document.activeElement)
    this.space.replaceChildren()
    this.tiles.clear()
    this.layout()
    if (focused) this.tiles.get(this.active)?.element.focus({ preventScroll: true })
  }

  put(index, entry) {
    const element = entry ? this.draw(entry, index) : h("div", { class: "chorus-tile chorus-loading" })
    element.setAttribute("role", "option")
    element.setAttribute("aria-posinset", index + 1)
    element.addEventListener("click", (event) => this.click(event, index))
    const tile = { element, entry }
    this.tiles.set(index, tile)
    this.space.append(element)
    return tile
  }

  mark(index, { element, entry }) {
    element.tabIndex = index === this.active ? 0 : -1
    element.setAttribute("aria-setsize", this.total)
    element.setAttribute("aria-selected", String(Boolean(entry && this.chosen.has(entry.id))))
  }

  click(event, index) {
    this.active = index
    const entry = this.at(index)
    if (!entry) return
    if (event.target.closest(".chorus-check") || event.ctrlKey || event.metaKey) this.toggle(entry)
    else if (event.shiftKey) this.extend(index)
    else this.open(entry)
    this.layout()
  }

  toggle(entry) {
    if (!this.chosen.delete(entry.id)) this.chosen.set(entry.id, entry)
    this.anchor = this.active
    this.changed()
  }

  extend(index) {
    const from = this.anchor ?? index
    for (let i = Math.min(from, index); i <= Math.max(from, index); i++) {
      const entry = this.at(i)
      if (entry) this.chosen.set(entry.id, entry)
    }
    this.changed()
  }

  /** Select every entry that answers the query, those not loaded yet too. */
  async all() {
    const round = this.round
    for (let number = 0; number * PAGE < this.total; number++) {
      if (!this.pages.get(number)) await this.page(number)
      if (round !== this.round) return
      for (const entry of this.pages.get(number) ?? []) this.chosen.set(entry.id, entry)
    }
    this.changed()
  }

  none() {
    this.chosen.clear()
    this.changed()
  }

  changed() {
    this.selected(this.chosen)
    this.layout()
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
    else if (event.key === "Escape" && this.chosen.size) this.none()
    else if (!entry) return
    else if (event.key === "Enter") this.open(entry)
    else if (event.key === " ") this.toggle(entry)
    else if (!this.act(event.key, this.chosen.size ? [...this.chosen.values()] : [entry])) return
    event.preventDefault()
    event.stopPropagation() // the canvas has shortcuts of its own
  }

  focus(index) {
    this.active = Math.min(Math.max(0, index), Math.max(0, this.total - 1))
    const { columns, height } = this.measure()
    const top = Math.floor(this.active / columns) * (height + GAP)
    const view = this.element
    if (top < view.scrollTop) view.scrollTop = top
    else if (top + height + 2 * GAP > view.scrollTop + view.clientHeight) view.scrollTop = top + height + 2 * GAP - view.clientHeight
    this.layout()
    this.tiles.get(this.active)?.element.focus({ preventScroll: true })
  }
}
