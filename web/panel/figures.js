// How full the cache is, when it will be, and what it has saved.

import { h, svg } from "../lib/dom.js"
import { bytes, duration, number, t } from "../lib/i18n.js"

const DAYS = 30
const SOON = 365 // days beyond which a projection says nothing

/** The bar of used space, and a sentence on how long the rest will do. */
export function space(stats) {
  const share = Math.min(1, stats.bytes / stats.limit)
  const values = { used: bytes(stats.bytes), limit: bytes(stats.limit) }
  return h(
    "div",
    { class: "chorus-space" },
    h("div", { class: "chorus-row" }, h("span", {}, t("space.used", values)), h("span", { class: "chorus-quiet" }, projection(stats))),
    h(
      "div",
      {
        class: "chorus-meter",
        role: "meter",
        "aria-label": t("space.label"),
        "aria-valuemin": "0",
        "aria-valuemax": String(stats.limit),
        "aria-valuenow": String(stats.bytes),
        "aria-valuetext": t("space.used", values),
      },
      h("span", { class: "chorus-used", style: { width: `${share * 100}%` } }),
      h("span", { class: "chorus-pinned", style: { width: `${Math.min(1, stats.pinned_bytes / stats.limit) * 100}%` } }),
    ),
  )
}

function projection(stats) {
  const left = stats.limit - stats.bytes
  if (left < stats.limit * 0.02) return t("space.full")
  const days = stats.growth > 0 ? left / stats.growth : Infinity
  return days < SOON ? t("space.days", { days: number(Math.max(1, Math.round(days))) }) : t("space.plenty")
}

/** Hits and saved time, in all and day by day. */
export function totals(stats) {
  const counts = [
    [number(stats.entries), t("totals.entries")],
    [number(stats.hits), t("totals.hits")],
    [duration(stats.saved), t("totals.saved")],
  ]
  return h(
    "div",
    { class: "chorus-totals" },
    h("dl", {}, counts.map(([value, name]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    plot(stats.days),
  )
}

/** Saved time of the last 30 days, a bar a day. */
function plot(days) {
  const known = new Map(days.map((day) => [day.day, day]))
  const today = Date.now()
  const shown = Array.from({ length: DAYS }, (_, back) => {
    const day = new Date(today - (DAYS - 1 - back) * 86400e3).toISOString().slice(0, 10)
    return known.get(day) ?? { day, hits: 0, saved: 0 }
  })
  const most = Math.max(...shown.map((day) => day.saved), 1e-9)
  const sum = shown.reduce((all, day) => all + day.saved, 0)
  const bars = shown.map((day, index) => {
    const height = day.hits ? Math.max(2, (day.saved / most) * 34) : 1
    const title = t("totals.day", { day: day.day, hits: number(day.hits), time: duration(day.saved) })
    const bar = svg("rect", { x: String(index * 5), y: String(36 - height), width: "4", height: String(height), rx: "1" })
    if (!day.hits) bar.classList.add("chorus-none")
    bar.append(svg("title", {}, title))
    return bar
  })
  const label = t("totals.plot", { days: DAYS, time: duration(sum) })
  return svg("svg", { class: "chorus-plot", viewBox: `0 0 ${DAYS * 5 - 1} 36`, role: "img", "aria-label": label }, bars)
}
