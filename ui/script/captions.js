// Captions: saved when their field is left, moved between by keys, and never drawn over while they are written.
const unsaved = new Map();  // place -> what was typed and is not kept yet
let writing = null;  // {place, start, end} of the field in use

const fields = () => [...document.querySelectorAll('#caption-list textarea.caption')];
const fieldOf = (place) => fields().find((field) => field.dataset.place === place);

document.addEventListener('input', (event) => {
  const field = event.target;
  if (field.matches?.('textarea.caption')) unsaved.set(field.dataset.place, field.value);
});

const sent = new Map();  // place -> what is on its way to the server
async function save(field) {
  const place = field.dataset.place, text = field.value;
  let words = '', hint = null;
  sent.set(place, text);
  try {
    const answer = await fetch('/caption/' + place, {method: 'PUT', body: text});
    const said = await answer.json();
    words = said.message;
    if (answer.ok) {
      hint = said.hint;
      if (unsaved.get(place) === text) unsaved.delete(place);
      document.querySelector('#caption-saved')?.click();
      const shown = document.querySelector(`#cards li[data-place="${CSS.escape(place)}"] .words`);
      if (shown && text.trim()) { shown.textContent = text; shown.classList.remove('none'); }
    }
  } catch {
    words = field.closest('[data-failed]')?.dataset.failed ?? '';
  }
  if (sent.get(place) === text) sent.delete(place);
  const now = fieldOf(place)?.closest('.captioned');
  if (!now) return;
  now.querySelector('.saved').textContent = words;
  if (hint !== null) now.querySelector('.long').textContent = hint;
}
document.addEventListener('change', (event) => {
  if (event.target.matches?.('textarea.caption')) save(event.target);
});
// A browser tells of no change where the script has put the words back.
document.addEventListener('focusout', (event) => {
  const field = event.target, place = field.dataset?.place;
  if (field.matches?.('textarea.caption') && unsaved.has(place) && sent.get(place) !== field.value) save(field);
});

// A page that is loaded anew, as Gradio does when the server was away, goes on with what was being written.
const DRAFT = 'captions being written';
window.addEventListener('pagehide', () => {
  if (unsaved.size) sessionStorage.setItem(DRAFT, JSON.stringify({unsaved: [...unsaved], writing}));
});
const draft = JSON.parse(sessionStorage.getItem(DRAFT) ?? 'null');
sessionStorage.removeItem(DRAFT);
if (draft && performance.getEntriesByType('navigation')[0]?.type === 'reload') {
  for (const [place, text] of draft.unsaved) unsaved.set(place, text);
  writing = draft.writing;
}

function goTo(field) {
  if (!field) return false;
  field.focus({preventScroll: true});
  field.setSelectionRange(field.value.length, field.value.length);
  field.closest('.captioned').scrollIntoView({block: 'center'});
  return true;
}

document.addEventListener('keydown', (event) => {
  const field = event.target;
  if (!field.matches?.('#caption-list textarea.caption') || event.isComposing || event.altKey || event.metaKey) return;
  const plain = !event.shiftKey && !event.ctrlKey && field.selectionStart === field.selectionEnd;
  const back = event.key === 'PageUp' || (event.key === 'ArrowUp' && (event.ctrlKey || (plain && field.selectionStart === 0)));
  const on = event.key === 'PageDown' || (event.key === 'Enter' && plain) ||
    (event.key === 'ArrowDown' && (event.ctrlKey || (plain && field.selectionEnd === field.value.length)));
  if (!back && !on) return;
  const all = fields(), next = all[all.indexOf(field) + (on ? 1 : -1)];
  event.preventDefault();
  if (!goTo(next)) { field.blur(); field.focus(); }
});

document.addEventListener('selectionchange', () => {
  const field = document.activeElement;
  if (field?.matches?.('#caption-list textarea.caption')) writing = {place: field.dataset.place, start: field.selectionStart, end: field.selectionEnd};
});
document.addEventListener('focusin', (event) => {
  if (!event.target.matches?.('#caption-list textarea.caption')) writing = null;
});

// When the list is drawn anew, what was being written stands there again, with the cursor where it was.
// Gradio changes what is there rather than replacing it, and a field that was once written in keeps its own text.
function restore() {
  for (const field of fields()) {
    if (!unsaved.has(field.dataset.place) && field.value !== field.dataset.text) field.value = field.dataset.text;
  }
  for (const [place, text] of unsaved) {
    const field = fieldOf(place);
    if (field && field.value !== text) field.value = text;
  }
  const field = writing && fieldOf(writing.place);
  if (field && document.activeElement !== field && (document.activeElement === document.body || !document.activeElement)) {
    field.focus({preventScroll: true});
    field.setSelectionRange(writing.start, writing.end);
  }
}

// Captions that a model has just written go into fields that nobody is writing in.
function takeFresh(list) {
  for (const item of list.querySelectorAll('li')) {
    const field = fieldOf(item.dataset.place);
    if (field && field !== document.activeElement && !unsaved.has(item.dataset.place)) field.value = item.textContent;
  }
}

new MutationObserver((changes) => {
  for (const change of changes) {
    if (change.type === 'attributes') restore();
    for (const node of change.addedNodes) {
      if (node.nodeType !== 1) continue;
      if (node.matches('.captions') || node.querySelector('ul.captions')) restore();
      const list = node.matches('ul.fresh') ? node : node.querySelector('ul.fresh');
      if (list) takeFresh(list);
    }
  }
}).observe(document.documentElement, {childList: true, subtree: true, attributeFilter: ['data-drawn']});

// A tag fills the field that the chosen change reads.
document.addEventListener('click', (event) => {
  const tag = event.target.closest?.('button.tag');
  if (!tag) return;
  const opener = document.querySelector('#many button[aria-expanded="false"], #many button.label-wrap:not(.open)');
  opener?.click();
  requestAnimationFrame(() => {
    const field = document.querySelector('#edit-find textarea, #edit-find input') ?? document.querySelector('#edit-text textarea, #edit-text input');
    if (!field) return;
    field.value = tag.dataset.tag;
    field.dispatchEvent(new Event('input', {bubbles: true}));
    field.focus();
  });
});
