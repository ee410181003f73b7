// The address of the page, and the focus of alerts.

// Keeps the project and the tab in the address, so that a reload, a bookmark or another window comes back to
// them.
function remember(name, value) {
  const address = new URL(location.href);
  if (!value || address.searchParams.get(name) === value) return;
  address.searchParams.set(name, value);
  history.replaceState(history.state, '', address);
}

globalThis.impasto = { ...globalThis.impasto, remember };

// Focuses each element that needs attention, once.
let focused = '';
new MutationObserver(() => {
  const alert = document.querySelector('[data-focus]');
  if (alert && alert.dataset.focus !== focused) {
    focused = alert.dataset.focus;
    alert.focus();
  }
}).observe(document.documentElement, { childList: true, subtree: true });
