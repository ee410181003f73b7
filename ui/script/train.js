// The Train tab: buttons of the queue, Stop, and the fields of the advanced settings.

const STOP_TRIES = 10;
const STOP_RETRY_MS = 1500;

// The next poll shows the queue as it has become.
document.addEventListener('click', async (event) => {
  const button = event.target.closest?.('button[data-queue-action]');
  if (!button) return;
  button.disabled = true;
  try {
    const run = encodeURIComponent(button.dataset.run);
    await fetch(`./line/${run}/${button.dataset.queueAction}`, { method: 'POST' });
  } finally {
    button.disabled = false;
  }
});

// Stop is a plain request and not a Gradio event: a running training must be stoppable while Gradio's
// connection is lost, and the page may be closed at once.
async function stop(project, triesLeft) {
  try {
    await fetch(`./stop/${encodeURIComponent(project)}`, { method: 'POST', keepalive: true });
  } catch {
    if (triesLeft) setTimeout(() => stop(project, triesLeft - 1), STOP_RETRY_MS);
  }
}

document.addEventListener('click', (event) => {
  if (event.target.closest?.('#stop')) stop(document.querySelector('#project input').value, STOP_TRIES);
});

let saving = Promise.resolve(); // fields are saved one after another
let unsavedFields = 0;

function showFieldError(field, message) {
  field.setAttribute('aria-invalid', message ? 'true' : 'false');
  let alert = field.parentElement.querySelector('[role=alert]');
  if (!alert && message) {
    alert = document.createElement('p');
    alert.setAttribute('role', 'alert');
    field.after(alert);
  }
  if (alert) alert.textContent = message;
}

async function saveSetting(field) {
  const project = field.closest('[data-of]').dataset.of;
  // A browser gives an empty value for text that is no number, which would silently mean the preset's value.
  const value = field.validity.badInput ? '?' : field.value;
  try {
    const response = await fetch(`./settings/${encodeURIComponent(project)}`, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ [field.name]: value }),
    });
    showFieldError(field, (await response.json()).message);
  } catch (error) {
    showFieldError(field, String(error.message || error));
  }
  document.getElementById('settings-changed')?.click(); // refreshes the estimate
}

document.addEventListener('change', (event) => {
  const field = event.target.closest?.('#form [name]');
  if (!field) return;
  unsavedFields += 1;
  saving = saving
    .then(() => saveSetting(field))
    .finally(() => {
      unsavedFields -= 1;
    });
});

// A press of Train also leaves the field that was being edited: the press is repeated once that field is
// saved.
document.addEventListener(
  'click',
  (event) => {
    const button = event.target.closest?.('#train, #another');
    if (!button || !unsavedFields) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    saving.then(() => button.click());
  },
  true,
);
