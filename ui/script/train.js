// The small buttons of the line; the next look at the server shows what has become of it.
document.addEventListener('click', async (event) => {
  const button = event.target.closest && event.target.closest('button[data-line]');
  if (!button) return;
  button.disabled = true;
  try {
    await fetch('/line/' + encodeURIComponent(button.dataset.run) + '/' + button.dataset.line, {method: 'POST'});
  } finally { button.disabled = false; }
});
