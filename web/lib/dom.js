// Elements in one expression. Text only ever goes in as text, so that a prompt can never become markup.

const SVG = "http://www.w3.org/2000/svg"

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value)
    else if (name === "style") Object.assign(element.style, value)
    else if (name === "dataset") Object.assign(element.dataset, value)
    else if (name in element && typeof value !== "string") element[name] = value
    else element.setAttribute(name, value === true ? "" : value)
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false))
  return element
}

/** h("button", { class: "a", onclick: f }, "text", child, …) */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children)
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children)
}

/** A PrimeIcons icon that screen readers pass over. */
export function icon(name) {
  return h("i", { class: `pi pi-${name}`, "aria-hidden": "true" })
}

/**
 * Make `shown` look like `fresh`. Elements that stay keep the keyboard's focus, their scroll position and what is open
 * in them; so do their event listeners, which must not hold what was shown when they were made.
 */
export function become(shown, fresh) {
  for (const { name } of [...shown.attributes]) {
    if (name !== "open" && !fresh.hasAttribute(name)) shown.removeAttribute(name)
  }
  for (const { name, value } of fresh.attributes) {
    if (shown.getAttribute(name) !== value) shown.setAttribute(name, value)
  }
  const before = [...shown.childNodes]
  const wanted = [...fresh.childNodes]
  wanted.forEach((child, index) => {
    const old = before[index]
    if (!old) shown.append(child)
    else if (old.nodeName !== child.nodeName) old.replaceWith(child)
    else if (old.nodeType === Node.TEXT_NODE) old.data !== child.data && (old.data = child.data)
    else become(old, child)
  })
  before.slice(wanted.length).forEach((child) => child.remove())
}

/** Give a select these [value, text]s. It keeps its value where that is still one of them, and stays open. */
export function fillSelect(select, options) {
  const before = select.value
  options.forEach(([value, text], index) => {
    const option = select.options[index] ?? select.appendChild(h("option"))
    if (option.value !== value || option.text !== text) Object.assign(option, { value, text })
  })
  select.length = options.length
  const value = options.some(([value]) => value === before) ? before : (options[0]?.[0] ?? "")
  if (select.value !== value) select.value = value
}
