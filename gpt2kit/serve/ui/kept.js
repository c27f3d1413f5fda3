// What the browser remembers for this page: localStorage for good, sessionStorage until the tab is closed.

/** null: nothing, or storage is switched off. */
export function kept(name, area) {
  try {
    return window[area].getItem(name);
  } catch {
    return null;
  }
}

export function keep(name, area, value) {
  try {
    window[area].setItem(name, value);
  } catch {
    // It is forgotten with the page, then.
  }
}
