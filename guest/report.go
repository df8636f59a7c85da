package guest

import (
	"fmt"
	"strings"
)

// The screen: an 80 column terminal without its last column, which some
// terminals wrap at, and 24 lines with one left for the cursor.
const (
	screenWidth = 79
	screenLines = 23
	labelWidth  = 12 // with the margin
	textWidth   = screenWidth - labelWidth
)

// report is one screen of plain ASCII, at most 23 lines of 79 columns, each
// ended by a newline.
func (f *facts) report() string {
	var s screen
	kernel := ""
	if f.release != "" {
		kernel = "Linux " + f.release + " " + f.machine
	}
	s.text("kernel", 2, "unknown", kernel, f.version)
	s.text("command", 3, "empty", f.cmdline)
	s.text("cpus", 2, "unknown", f.cpuText(), f.model)
	s.text("memory", 1, "unknown", f.memoryText())
	s.text("clock", 1, "unknown", f.clockText())
	s.text("hypervisor", 1, "none seen", f.hypervisor)
	s.list("console", 2, f.consoleItems())
	s.text("pci", 1, "none", f.pciText())
	s.list("virtio", 2, f.virtio)
	s.list("disks", 2, f.disks)
	s.list("network", 2, f.nets)
	s.text("mounts", 3, "none", f.mountText())
	s.text("next", 2, "", f.nextText())
	return s.render("vole guest", "init reached after "+secondsText(f.uptime.Seconds()), &f.messages)
}

func (f *facts) cpuText() string {
	if f.cpus == 0 {
		return ""
	}
	text := fmt.Sprintf("%d online", f.cpus)
	if f.sockets > 0 {
		text += fmt.Sprintf(" (%s x %s x %s)", plural(f.sockets, "socket"),
			plural(f.cores, "core"), plural(f.threads, "thread"))
	}
	return text
}

func (f *facts) memoryText() string {
	if f.memTotal == 0 {
		return ""
	}
	text := fmt.Sprintf("%s total (%d kB)", bytesText(f.memTotal<<10), f.memTotal)
	if f.memAvailable > 0 {
		text += fmt.Sprintf(", %s available", bytesText(f.memAvailable<<10))
	}
	return text
}

func (f *facts) clockText() string {
	if f.clock == "" || len(f.clockOther) == 0 {
		return f.clock
	}
	return f.clock + ", not used: " + strings.Join(f.clockOther, " ")
}

// consoleItems lists the consoles that the kernel writes to, and then the other
// serial ports.
func (f *facts) consoleItems() []string {
	ports := make(map[string]string)
	for _, u := range f.ports {
		ports[u.name] = fmt.Sprintf("%s (%s at %s, irq %s)", u.name, u.kind, u.where, u.irq)
	}
	var all []string
	for _, c := range f.consoles {
		if port, ok := ports[c]; ok {
			delete(ports, c)
			c = port
		}
		all = append(all, c)
	}
	for _, u := range f.ports {
		if port, ok := ports[u.name]; ok {
			all = append(all, "not used: "+port)
		}
	}
	return all
}

func (f *facts) pciText() string {
	if len(f.pci) == 0 {
		return ""
	}
	ids := make([]string, len(f.pci))
	for i, p := range f.pci {
		ids[i] = fmt.Sprintf("%04x:%04x", p.vendor, p.device)
	}
	return fmt.Sprintf("%s: %s", plural(len(f.pci), "function"), strings.Join(ids, " "))
}

func (f *facts) mountText() string {
	var done, failed []string
	for _, m := range f.mounts {
		if m.err != nil {
			failed = append(failed, fmt.Sprintf("%s on %s failed: %v", m.kind, m.target, m.err))
		} else {
			done = append(done, m.target)
		}
	}
	text := strings.Join(done, " ")
	if len(failed) > 0 {
		text = strings.TrimSpace(text + "; " + strings.Join(failed, "; "))
	}
	return strings.TrimPrefix(text, "; ")
}

func (f *facts) nextText() string {
	text := f.words.next()
	if len(f.words.unknown) > 0 {
		text += "; not understood: " + strings.Join(f.words.unknown, " ")
	}
	return text
}

// screen collects the fields of a report.
type screen struct{ fields []field }

// field is a label and lines of at most textWidth columns.
type field struct {
	label string
	lines []string
	more  bool // lines were left out
}

// text adds paragraphs, wrapped, or the word none if they are empty.
func (s *screen) text(label string, max int, none string, paragraphs ...string) {
	var lines []string
	for _, p := range paragraphs {
		lines = append(lines, pack(strings.Fields(printable(p)), " ")...)
	}
	s.add(label, max, none, lines)
}

// list adds items with commas between them; lines end at an item's end.
func (s *screen) list(label string, max int, items []string) {
	clean := make([]string, len(items))
	for i := range items {
		clean[i] = printable(items[i])
	}
	s.add(label, max, "none", pack(clean, ", "))
}

func (s *screen) add(label string, max int, none string, lines []string) {
	if len(lines) == 0 {
		lines = []string{none}
	}
	f := field{label: label, lines: lines}
	for len(f.lines) > max {
		f.drop()
	}
	s.fields = append(s.fields, f)
}

func (f *field) drop() { f.lines, f.more = f.lines[:len(f.lines)-1], true }

// render puts the fields and as many of the serious messages as there is room
// for between two rules.
func (s *screen) render(left, right string, m *messages) string {
	count := "no kernel log, or one that cannot be read"
	if m.total > 0 {
		count = fmt.Sprintf("%s of kernel log, no warnings", plural(m.total, "line"))
	}
	if n := len(m.serious); n > 0 {
		count = fmt.Sprintf("%s of kernel log, %s or worse", plural(m.total, "line"), plural(n, "warning"))
	}
	s.text("messages", 1, "", count)
	room := screenLines - 2 // without the rules
	s.shrink(room - min(len(m.serious), 2))

	var lines []string
	lines = append(lines, rule(left, right))
	for _, f := range s.fields {
		for i, l := range f.lines {
			if f.more && i == len(f.lines)-1 {
				l = cut(l+" ...", textWidth)
			}
			lines = append(lines, fmt.Sprintf(" %-*s%s", labelWidth-1, f.label, l))
			f.label = ""
		}
	}
	room += 1 - len(lines)
	shown := m.serious
	if len(shown) > room {
		shown = shown[:room-1]
	}
	for _, line := range shown {
		lines = append(lines, strings.TrimRight("  "+cut(printable(shortStamp(line)), screenWidth-2), " "))
	}
	if n := len(m.serious) - len(shown); n > 0 {
		lines = append(lines, fmt.Sprintf("  ... and %d more", n))
	}
	lines = append(lines, rule("", ""), "")
	return strings.Join(lines, "\n")
}

// shrink drops lines of the longest fields until no more than room are left.
func (s *screen) shrink(room int) {
	for {
		total, longest := 0, 0
		for i, f := range s.fields {
			total += len(f.lines)
			if len(f.lines) >= len(s.fields[longest].lines) {
				longest = i
			}
		}
		if total <= room || len(s.fields[longest].lines) == 1 {
			return
		}
		s.fields[longest].drop()
	}
}

// rule is a line of dashes with words at its left and right.
func rule(left, right string) string {
	if left != "" {
		left = "-- " + left + " "
	}
	if right != "" {
		right = " " + right + " --"
	}
	return left + strings.Repeat("-", screenWidth-len(left)-len(right)) + right
}

// shortStamp takes the padding out of a time stamp, "[    1.234567] ".
func shortStamp(line string) string {
	if rest, ok := strings.CutPrefix(line, "["); ok {
		return "[" + strings.TrimLeft(rest, " ")
	}
	return line
}

// printable replaces what a terminal could take for something else than ASCII
// text.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, strings.TrimSpace(s))
}

// pack puts words into lines of textWidth columns with sep between them, and
// breaks words that are longer than a line.
func pack(words []string, sep string) []string {
	var lines []string
	line := ""
	for i, word := range words {
		if i < len(words)-1 {
			word += sep
		}
		if line != "" && len(line)+len(strings.TrimRight(word, " ")) > textWidth {
			lines = append(lines, strings.TrimRight(line, " "))
			line = ""
		}
		for line += word; len(strings.TrimRight(line, " ")) > textWidth; line = line[textWidth:] {
			lines = append(lines, strings.TrimRight(line[:textWidth], " "))
		}
	}
	if line != "" {
		lines = append(lines, strings.TrimRight(line, " "))
	}
	return lines
}

func cut(s string, width int) string {
	if len(s) <= width {
		return s
	}
	return strings.TrimRight(s[:width-3], " ") + "..."
}

func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

func secondsText(s float64) string { return fmt.Sprintf("%.3f s", s) }

// bytesText is a size with one digit after the point, in binary units.
func bytesText(n uint64) string {
	const units = "KMGTPE"
	if n < 1<<10 {
		return plural(int(n), "byte")
	}
	v, unit := float64(n)/1024, 0
	for v >= 1023.95 && unit < len(units)-1 {
		v, unit = v/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", v, units[unit])
}
