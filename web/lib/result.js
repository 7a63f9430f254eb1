// What came of a request, shown on its node: hit or miss, the source, what changed, what it saved.

import { h, icon } from "./dom.js"
import { duration, number, percent, said, t } from "./i18n.js"
import { whyLost } from "./lost.js"
import { Player } from "./player.js"
import { costOf, legend, Timeline } from "./timeline.js"
import { difference, weightOf } from "./words.js"

const ICONS = { hit: "bolt", identical: "clone", miss: "circle", bypassed: "ban", unread: "eye-slash" }
const MOST_NEAREST = 3
const NONE_NEAR = new Set(["miss.nearest", "miss.chosen_differs"])
// What needs no line of its own: the result says it in other words.
const PLAIN = new Set(["kept.storing", "kept.storing_states", "not_kept.bypassed", "not_kept.no_run", "not_kept.there"])

/** Why the request came to what it did, in the page's language; results of an older Chorus have it in English only. */
const reasonOf = (figures) => said(figures.said?.reason ?? figures.reason)

/** The element that shows one result. open(cache, id) shows an entry in the panel. */
export class Result {
  constructor(open) {
    this.open = open
    this.players = [] // on screen
    this.made = [] // for what is shown next
    this.element = h("div", { class: "chorus chorus-result", role: "region", "aria-label": t("result.region") })
    this.idle()
  }

  /** Nothing has run yet. */
  idle() {
    this.replace(h("p", { class: "chorus-quiet" }, t("result.idle")))
  }

  /** A run began: its stages, and how far it is. */
  started(run) {
    this.timeline = new Timeline(run)
    const headline = this.headline(run.outcome, run.match_score, t("result.sampling"))
    this.replace(headline, this.timeline.element, legend(run))
    this.progress((run.looked ?? null) === null ? run.k1 : 0)
  }

  /** `done` steps of the schedule have been computed or skipped. */
  progress(done) {
    this.timeline?.progress(done)
  }

  /**
   * What the look-up answered. The answer that led to what a run reported is not news, and the report knows better:
   * the host repeats answers that it keeps.
   */
  answered(figures) {
    const answer = JSON.stringify(figures)
    if (answer === this.answer) return
    this.answer = answer
    this.reported(figures)
  }

  /** What is known of the request: what the look-up answered, how its run began, or the run's report. */
  reported(figures) {
    this.replace(this.headlineOf(figures), this.body(figures))
  }

  /** What became of the run. */
  finished(figures) {
    this.timeline = undefined
    this.entry = figures.entry_id
    this.replace(
      this.headlineOf(figures),
      this.saving(figures),
      this.stages(figures),
      this.body(figures),
      this.notes(figures),
      this.lost(figures.said?.stored),
    )
    this.markLost()
  }

  /** Say that the entry of this run was not kept, where that is known by now. */
  markLost() {
    const why = whyLost(this.entry)
    if (why && !this.element.querySelector(".chorus-lost")) this.element.append(this.lostLine(why))
  }

  /** The height in pixels at which nothing has to be scrolled. */
  needs() {
    const style = this.element.style
    style.height = "auto"
    const height = this.element.scrollHeight + 2
    style.height = ""
    return height
  }

  /** Let go of what plays. */
  stop() {
    this.players.forEach((player) => player.stop())
    this.players = []
  }

  replace(...children) {
    this.stop()
    this.element.replaceChildren(...children.flat().filter(Boolean))
    this.players = this.made
    this.made = []
  }

  headline(outcome, score, detail) {
    const badge = h(
      "span",
      { class: `chorus-badge chorus-${outcome}` },
      icon(ICONS[outcome] ?? "circle"),
      t(`outcome.${outcome}`),
      score !== null && score !== undefined && ["hit", "miss"].includes(outcome) && h("b", {}, number(score, 2)),
    )
    return h("div", { class: "chorus-headline", "aria-live": "polite" }, badge, h("span", {}, detail))
  }

  headlineOf(figures) {
    const { outcome } = figures
    let detail = ""
    if (outcome === "hit") detail = "k1" in figures ? this.reuse(figures) : t("result.found")
    else if (outcome === "identical") detail = t("result.identical")
    else if (outcome === "unread") detail = reasonOf(figures)
    return this.headline(outcome, figures.match_score, detail)
  }

  reuse(figures) {
    if (figures.looking) return t("result.looking")
    const cost = t("result.cost", { cost: number(costOf(figures), 1), steps: figures.steps })
    const differs = (figures.looked ?? null) !== null && t("result.looked", { share: percent(figures.looked) })
    return [differs, cost].filter(Boolean).join(" · ")
  }

  saving(figures) {
    if (figures.cold_s === null || figures.cold_s === undefined) return null
    const took = figures.sampling_s + figures.chorus_s
    const saved = figures.cold_s - took
    const factor = took > 0 ? figures.cold_s / took : 0
    const key = saved < 0 ? "result.lost" : figures.outcome === "identical" ? "result.saved" : "result.savedTimes"
    const text = t(key, { time: duration(Math.abs(saved)), factor: number(factor, 2) })
    const basis = figures.cold_runs ? t("result.measured", { runs: figures.cold_runs }) : t("result.estimated")
    return h("p", { class: "chorus-saving" }, h("b", {}, text), " ", h("span", { class: "chorus-quiet" }, basis))
  }

  stages(figures) {
    if (!["hit", "identical"].includes(figures.outcome)) return null
    return [new Timeline(figures).element, legend(figures)]
  }

  body(figures) {
    if (figures.outcome === "miss") return this.missed(figures)
    if (figures.outcome === "bypassed") return h("p", {}, reasonOf(figures))
    const source = this.sourceOf(figures)
    return source && this.source(figures, source)
  }

  /** The entry that served. Where the report names another than the look-up found, the report is right. */
  sourceOf({ outcome, source, source_id: id, source_prompt: found, prompt }) {
    if (!id || source?.id === id) return source
    return { id, prompt: outcome === "identical" ? prompt : found, preview: true }
  }

  source(figures, source) {
    const masks = figures.masks ?? null
    const show = this.player(figures, source, figures.shape, masks)
    const changed = difference(source.prompt, figures.prompt).some((part) => part.kind !== "same")
    return h(
      "div",
      { class: "chorus-source" },
      show.element,
      h(
        "div",
        { class: "chorus-words" },
        changed ? this.words(source.prompt, figures.prompt, figures.tokens ?? []) : h("p", {}, source.prompt),
        this.louder(figures.tokens ?? []),
        masks && show.player && this.maskSwitch(show.player),
      ),
    )
  }

  player(figures, entry, shape, masks) {
    const open = () => this.open(figures.cache, entry.id)
    const label = t("result.open", { prompt: entry.prompt })
    if (!entry.preview) {
      return { element: h("button", { class: "chorus-thumb chorus-empty", onclick: open, title: label }, icon("image")) }
    }
    const player = new Player(figures.cache, entry.id, shape, t("result.preview", { prompt: entry.prompt }), masks)
    this.made.push(player)
    return { player, element: h("button", { class: "chorus-thumb", onclick: open, title: label, "aria-label": label }, player.canvas) }
  }

  maskSwitch(player) {
    const change = (event) => {
      player.showMasks = event.target.checked
      player.draw()
    }
    return h("label", { class: "chorus-switch" }, h("input", { type: "checkbox", checked: true, onchange: change }), t("result.masks"))
  }

  /** The new prompt with what it lacks of the old one struck out, new words marked by their weight. */
  words(source, target, tokens) {
    const parts = difference(source, target).map(({ kind, word }) => {
      if (kind === "gone") return [h("del", {}, word), " "]
      if (kind === "same") return `${word} `
      const weight = weightOf(word, tokens)
      const title = weight === null ? t("words.new") : t("words.weight", { weight: percent(weight) })
      return [h("ins", { title, style: { "--weight": weight ?? 0 }, dataset: { weight: weight ?? "" } }, word), " "]
    })
    return h("p", {}, parts)
  }

  louder(tokens) {
    if (!tokens.length) return null
    const words = tokens.map(([label, weight]) => `${label} ${percent(weight)}`).join(" · ")
    return h("p", { class: "chorus-quiet" }, t("words.amplified", { words }))
  }

  /** Why nothing served: the nearest entries where the reason is that none was near enough, else the reason itself. */
  missed(figures) {
    const code = figures.said?.reason?.code
    if (code === "miss.empty") return h("p", {}, t("miss.empty"))
    if (!figures.nearest?.length || (code && !NONE_NEAR.has(code))) return h("p", {}, reasonOf(figures))
    const items = figures.nearest.slice(0, MOST_NEAREST).map((entry) => {
      const why = this.refusal(figures, entry)
      return h(
        "li",
        { class: "chorus-near" },
        this.player(figures, entry, entry.shape, null).element,
        h("div", {}, this.words(entry.prompt, figures.prompt, []), why.map(([reason, advice]) =>
          h("p", {}, h("b", {}, reason), " ", h("span", { class: "chorus-quiet" }, advice)))),
        h("span", { class: "chorus-score", title: t("miss.score") }, number(entry.score, 2)),
      )
    })
    return h("ul", { class: "chorus-nearest", "aria-label": t("miss.nearest") }, items)
  }

  /** Pairs of why an entry did not serve and what would make it serve. */
  refusal(figures, entry) {
    if (!entry.differs.length) {
      const scores = { score: number(entry.score, 2), threshold: number(figures.threshold, 2) }
      return [[t("refused.score", scores), t("advice.score", scores)]]
    }
    const size = (shape) => shape.slice(-3).join(" × ")
    const values = { here: size(figures.shape), there: size(entry.shape) }
    return entry.differs.map((part) => [t(`refused.${part}`, values), t(`advice.${part}`, values)])
  }

  /** What became of keeping the run, where that is nothing. */
  lost(stored) {
    if (!stored || PLAIN.has(stored.code)) return null
    return stored.code === "not_kept.fault" ? this.lostLine(stored.values.error) : h("p", { class: "chorus-quiet" }, said(stored))
  }

  /** In short; what to do about it is in the toast, and in the line's title. */
  lostLine(why) {
    const short = why.code === "fault.unavailable" ? why.values.reason : why
    return h("p", { class: "chorus-lost", role: "status", title: said(why) }, icon("exclamation-triangle"), t("lost.line", { why: said(short) }))
  }

  notes(figures) {
    const notes = figures.said?.notes ?? figures.notes ?? []
    return notes.length ? h("ul", { class: "chorus-notes" }, notes.map((note) => h("li", {}, said(note)))) : null
  }
}
