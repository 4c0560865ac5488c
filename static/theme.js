// Loaded before the first paint, so that a remembered theme does not flash.
try {
  const theme = localStorage.getItem("theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // A browser that keeps nothing for this site: the theme is its own then.
}
document.documentElement.dataset.scripted = ""; // buttons that need a script may show
