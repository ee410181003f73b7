// The Captions tab: captions are saved when their field is left, keys move between fields, and a refresh
// never overwrites a caption that is being edited.

const DRAFT = 'captions being written'; // key in sessionStorage
const RETRY_MS = 3000;
let editing = null; // {place, start, end} of the focused field: its picture and the selection

const fields = () => [...document.querySelectorAll('#caption-list textarea.caption')];
const fieldOf = (place) => fields().find((field) => field.dataset.place === place);

async function send(place, text) {
  try {
    const response = await fetch(`./caption/${place}`, { method: 'PUT', body: text });
    const result = await response.json(); // a proxy whose studio is away sends no JSON
    return { ...result, state: response.ok ? 'saved' : 'rejected' };
  } catch {
    return { state: 'unreachable' };
  }
}

function show(place, text, { state, message, hint }) {
  if (state === 'saved') {
    document.querySelector('#caption-saved')?.click();
    const shown = document.querySelector(`#cards li[data-place="${CSS.escape(place)}"] .words`);
    if (shown && text.trim()) {
      shown.textContent = text;
      shown.classList.remove('none');
    }
  }
  // A refresh may have replaced the field meanwhile.
  const item = fieldOf(place)?.closest('.captioned');
  if (!item) return;
  item.querySelector('.saved').textContent = message ?? item.closest('[data-failed]')?.dataset.failed ?? '';
  if (state === 'saved') item.querySelector('.long').textContent = hint;
}

const saves = new impasto.CaptionSaves(send, show, (retry) => setTimeout(retry, RETRY_MS));
saves.editedPlace = () =>
  document.activeElement?.matches('textarea.caption') ? document.activeElement.dataset.place : null;

document.addEventListener('input', (event) => {
  const field = event.target;
  if (field.matches?.('textarea.caption')) saves.edit(field.dataset.place, field.value);
});

document.addEventListener('change', (event) => {
  const field = event.target;
  if (field.matches?.('textarea.caption')) saves.save(field.dataset.place, field.value);
});

// A browser fires no `change` event for text that `restore` has put into a field.
document.addEventListener('focusout', (event) => {
  const field = event.target;
  const place = field.dataset?.place;
  if (field.matches?.('textarea.caption') && saves.isDue(place, field.value)) saves.save(place, field.value);
});

// Gradio reloads the page when its server has been away; unsaved captions survive that in the session
// storage, and are saved by the new page.
window.addEventListener('pagehide', () => {
  const unsaved = [...saves.unsaved];
  if (unsaved.length) sessionStorage.setItem(DRAFT, JSON.stringify({ unsaved, editing }));
});
const draft = JSON.parse(sessionStorage.getItem(DRAFT) ?? 'null');
sessionStorage.removeItem(DRAFT);
if (draft && performance.getEntriesByType('navigation')[0]?.type === 'reload') {
  saves.takeOver(draft.unsaved);
  editing = draft.editing;
}

function goTo(field) {
  if (!field) return false;
  field.focus({ preventScroll: true });
  field.setSelectionRange(field.value.length, field.value.length);
  field.closest('.captioned').scrollIntoView({ block: 'center' });
  return true;
}

// -1 for a key that leads to the previous caption, 1 for the next one, 0 for all other keys.
function directionOf(event, field) {
  const { key, ctrlKey } = event;
  const isPlain = !event.shiftKey && !ctrlKey && field.selectionStart === field.selectionEnd;
  const isAtStart = isPlain && field.selectionStart === 0;
  const isAtEnd = isPlain && field.selectionEnd === field.value.length;
  if (key === 'PageUp' || (key === 'ArrowUp' && (ctrlKey || isAtStart))) return -1;
  if (key === 'PageDown' || (key === 'Enter' && isPlain)) return 1;
  return key === 'ArrowDown' && (ctrlKey || isAtEnd) ? 1 : 0;
}

document.addEventListener('keydown', (event) => {
  const field = event.target;
  if (!field.matches?.('#caption-list textarea.caption')) return;
  if (event.isComposing || event.altKey || event.metaKey) return;
  const direction = directionOf(event, field);
  if (!direction) return;
  event.preventDefault();
  const all = fields();
  if (goTo(all[all.indexOf(field) + direction])) return;
  // There is no other field: leaving and entering this one saves it.
  field.blur();
  field.focus();
});

document.addEventListener('selectionchange', () => {
  const field = document.activeElement;
  if (!field?.matches?.('#caption-list textarea.caption')) return;
  editing = { place: field.dataset.place, start: field.selectionStart, end: field.selectionEnd };
});
document.addEventListener('focusin', (event) => {
  if (!event.target.matches?.('#caption-list textarea.caption')) editing = null;
});

// After a refresh of the list, unsaved text and the cursor are put back. Gradio patches the elements instead
// of replacing them, and a field that was edited once ignores its new HTML: saved text is therefore set here
// too.
function restore() {
  for (const field of fields()) {
    const { place, text } = field.dataset;
    if (!saves.unsaved.has(place) && field.value !== text) field.value = text;
  }
  for (const [place, text] of saves.unsaved) {
    const field = fieldOf(place);
    if (field && field.value !== text) field.value = text;
  }
  const field = editing && fieldOf(editing.place);
  const hasNoFocus = !document.activeElement || document.activeElement === document.body;
  if (field && hasNoFocus) {
    field.focus({ preventScroll: true });
    field.setSelectionRange(editing.start, editing.end);
  }
}

// Puts captions that a model has just written into the fields that nobody is editing.
function fillFromModel(list) {
  for (const item of list.querySelectorAll('li')) {
    const field = fieldOf(item.dataset.place);
    if (!field || field === document.activeElement || saves.unsaved.has(item.dataset.place)) continue;
    field.value = item.textContent;
  }
}

new MutationObserver((changes) => {
  for (const change of changes) {
    if (change.type === 'attributes') restore();
    for (const node of change.addedNodes) {
      if (node.nodeType !== 1) continue;
      if (node.matches('.captions') || node.querySelector('ul.captions')) restore();
      const list = node.matches('ul.fresh') ? node : node.querySelector('ul.fresh');
      if (list) fillFromModel(list);
    }
  }
}).observe(document.documentElement, { childList: true, subtree: true, attributeFilter: ['data-rendered'] });

// A click on a tag puts it into the field that the chosen action uses.
document.addEventListener('click', (event) => {
  const tag = event.target.closest?.('button.tag');
  if (!tag) return;
  document.querySelector('#many button[aria-expanded="false"], #many button.label-wrap:not(.open)')?.click();
  requestAnimationFrame(() => {
    const field =
      document.querySelector('#edit-find textarea, #edit-find input') ??
      document.querySelector('#edit-text textarea, #edit-text input');
    if (!field) return;
    field.value = tag.dataset.tag;
    field.dispatchEvent(new Event('input', { bubbles: true }));
    field.focus();
  });
});
