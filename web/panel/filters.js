// What to list and in what order.

import { fillSelect, h, icon } from "../lib/dom.js"
import { number, t } from "../lib/i18n.js"

const SORTS = ["newest", "used", "hits", "saved", "bytes", "oldest"]
const DAY = 86400
const WHEN = { any: null, day: ["created_after", DAY], week: ["created_after", 7 * DAY], month: ["created_after", 30 * DAY], older: ["created_before", 30 * DAY] }
const SHOWN = { all: {}, pinned: { pinned: true }, loose: { pinned: false }, full: { source: true }, reused: { source: false } }
const TYPING_MS = 250

/** The row of filters. changed(): ask anew. */
export class Filters {
  constructor(changed) {
    this.changed = changed
    this.words = h("input", { type: "search", class: "chorus-search", maxlength: "1000", placeholder: t("filter.words"), "aria-label": t("filter.words") })
    this.words.addEventListener("input", () => {
      clearTimeout(this.typing)
      this.typing = setTimeout(() => this.changed(), TYPING_MS)
    })
    this.meaning = h("input", { type: "checkbox", onchange: () => this.changed() })
    this.how = h("div", { class: "chorus-quiet chorus-how" })
    this.model = this.choice("model", [])
    this.shape = this.choice("shape", [])
    this.when = this.choice("when", Object.keys(WHEN).map((key) => [key, t(`when.${key}`)]))
    this.show = this.choice("show", Object.keys(SHOWN).map((key) => [key, t(`show.${key}`)]))
    this.sort = this.choice("sort", SORTS.map((key) => [key, t(`sort.${key}`)]))
    this.element = h(
      "div",
      { class: "chorus-filters", role: "search" },
      h("label", { class: "chorus-searchbox" }, icon("search"), this.words),
      this.how,
      h("div", { class: "chorus-choices" }, this.model, this.shape, this.when, this.show, this.sort),
    )
  }

  choice(name, options) {
    const select = h("select", { "aria-label": t(`filter.${name}`), title: t(`filter.${name}`), onchange: () => this.changed() })
    fillSelect(select, options)
    return select
  }

  /** Whether prompts can be compared by meaning on this machine. */
  allowMeaning(possible) {
    const say = possible ? h("label", { class: "chorus-switch" }, this.meaning, t("filter.meaning")) : t("filter.wordsOnly")
    this.how.replaceChildren(say)
  }

  /** Offer what the cache holds. */
  offer(stats) {
    const models = stats.models.map((m) => [m.weights, `${m.latent_format} ${m.weights.slice(0, 6)} (${number(m.entries)})`])
    fillSelect(this.model, [["", t("filter.anyModel")], ...models])
    const shapes = stats.shapes.map(({ shape, size }) => [shape.join("x"), size ? t("entry.size", sizeOf(size)) : shape.join(" × ")])
    fillSelect(this.shape, [["", t("filter.anyShape")], ...shapes])
  }

  /** Whether anything is left out. */
  get narrow() {
    const { words, model, shape, when, show } = this
    return Boolean(words.value.trim() || model.value || shape.value || when.value !== "any" || show.value !== "all")
  }

  reset() {
    this.words.value = ""
    this.model.value = this.shape.value = ""
    this.when.value = "any"
    this.show.value = "all"
    this.changed()
  }

  /** The parameters of the route. */
  query() {
    const words = this.words.value.trim()
    if (words && this.meaning.checked) return { meaning: words }
    const query = { words, weights: this.model.value, shape: this.shape.value, sort: this.sort.value, ...SHOWN[this.show.value] }
    const [name, ago] = WHEN[this.when.value] ?? []
    if (name) query[name] = Math.round(Date.now() / 1000 - ago)
    return query
  }
}

/** A size as the values of the text entry.size. */
export function sizeOf([width, height, frames]) {
  return { width, height, frames }
}
