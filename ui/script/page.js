// The address names the project and the tab, so that a reload, a bookmark or another window comes back to them.
const remember = (name, value) => {
  const address = new URL(location.href);
  if (!value || address.searchParams.get(name) === value) return;
  address.searchParams.set(name, value);
  history.replaceState(history.state, '', address);
};
const named = (button) => /^tab-(.+)-button$/.exec(button ? button.id : '');
document.addEventListener('click', (event) => {
  const found = named(event.target.closest && event.target.closest('[role=tab]'));
  if (found) remember('tab', found[1]);
});
document.addEventListener('keyup', () => {
  const found = named(document.activeElement && document.activeElement.closest('[role=tab][aria-selected=true]'));
  if (found) remember('tab', found[1]);
});
// What asks for attention gets the focus, once.
let attended = '';
new MutationObserver(() => {
  const where = document.querySelector('#status [data-project]');
  if (where) remember('project', where.dataset.project);
  const alert = document.querySelector('[data-focus]');
  if (alert && alert.dataset.focus !== attended) {
    attended = alert.dataset.focus;
    alert.focus();
  }
}).observe(document.documentElement, {childList: true, subtree: true});
