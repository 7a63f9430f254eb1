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
