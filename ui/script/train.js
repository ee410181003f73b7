// The small buttons of the line; the next look at the server shows what has become of it.
document.addEventListener('click', async (event) => {
  const button = event.target.closest && event.target.closest('button[data-line]');
  if (!button) return;
  button.disabled = true;
  try {
    await fetch('/line/' + encodeURIComponent(button.dataset.run) + '/' + button.dataset.line, {method: 'POST'});
  } finally { button.disabled = false; }
});
// Stop is heard whatever has become of the page and of Gradio's connection.
const stop = async (project, tries) => {
  try {
    await fetch('/stop/' + encodeURIComponent(project), {method: 'POST', keepalive: true});
  } catch { if (tries) setTimeout(() => stop(project, tries - 1), 1500); }
};
document.addEventListener('click', (event) => {
  if (event.target.closest && event.target.closest('#stop')) stop(document.querySelector('#project input').value, 10);
});
// A field of Advanced is kept when it is left; the estimate beside the button follows.
let keeping = Promise.resolve(), open = 0;
const tell = (field, message) => {
  field.setAttribute('aria-invalid', message ? 'true' : 'false');
  let place = field.parentElement.querySelector('[role=alert]');
  if (!place && message) {
    place = document.createElement('p');
    place.setAttribute('role', 'alert');
    field.after(place);
  }
  if (place) place.textContent = message;
};
const keep = async (field) => {
  const project = field.closest('[data-of]').dataset.of;
  // What is no number comes as nothing: it would silently be the preset's.
  const value = field.validity.badInput ? '?' : field.value;
  try {
    const answer = await fetch('/settings/' + encodeURIComponent(project), {
      method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify({[field.name]: value}),
    });
    tell(field, (await answer.json()).message);
  } catch (error) { tell(field, String(error.message || error)); }
  const changed = document.getElementById('settings-changed');
  if (changed) changed.click();
};
document.addEventListener('change', (event) => {
  const field = event.target.closest && event.target.closest('#form [name]');
  if (!field) return;
  open++;
  keeping = keeping.then(() => keep(field)).finally(() => open--);
});
// Train waits for a field that was left by pressing it.
document.addEventListener('click', (event) => {
  const button = event.target.closest && event.target.closest('#train, #another');
  if (!button || !open) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  keeping.then(() => button.click());
}, true);
