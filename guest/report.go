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
	s.rule("vole guest", "init reached after "+secondsText(f.uptime.Seconds()))
	s.field("kernel", 2, strings.TrimSpace("Linux "+f.release+" "+f.machine), f.version)
	s.field("command", 3, f.cmdline)
	s.field("cpus", 2, f.cpuText(), f.model)
	s.field("memory", 1, f.memoryText())
	s.field("clock", 1, f.clockText())
	s.field("hypervisor", 1, f.hypervisor)
	s.field("console", 2, f.consoleText())
	s.field("pci", 1, f.pciText())
	s.field("virtio", 2, strings.Join(f.virtio, ", "))
	s.field("disks", 2, strings.Join(f.disks, ", "))
	s.field("network", 2, strings.Join(f.nets, ", "))
	s.field("mounts", 3, f.mountText())
	s.field("then", 2, f.nextText())
	s.messages(&f.messages)
	s.rule("", "")
	return strings.Join(s.lines, "\n") + "\n"
}

func (f *facts) cpuText() string {
	if f.cpus == 0 {
		return ""
	}
	text := fmt.Sprintf("%d online", f.cpus)
	if f.sockets > 0 {
		text += fmt.Sprintf(" (%s, %s, %s)", plural(f.sockets, "socket"),
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

// consoleText lists the consoles that the kernel writes to, and the serial
// ports, in one.
func (f *facts) consoleText() string {
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
	if len(all) == 0 {
		all = append(all, "none")
	}
	for _, u := range f.ports {
		if port, ok := ports[u.name]; ok {
			all = append(all, "no console: "+port)
		}
	}
	return strings.Join(all, ", ")
}

func (f *facts) pciText() string {
	if len(f.pci) == 0 {
		return "none"
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

// screen collects the lines of a report.
type screen struct{ lines []string }

// rule is a line of dashes with words at its left and right.
func (s *screen) rule(left, right string) {
	if left != "" {
		left = "-- " + left + " "
	}
	if right != "" {
		right = " " + right + " --"
	}
	s.lines = append(s.lines, left+strings.Repeat("-", screenWidth-len(left)-len(right))+right)
}

// field is a label and its paragraphs, cut at max lines.
func (s *screen) field(label string, max int, paragraphs ...string) {
	var lines []string
	for _, p := range paragraphs {
		if p = printable(p); p != "" {
			lines = append(lines, wrap(p, textWidth)...)
		}
	}
	if len(lines) == 0 {
		lines = []string{"none"}
	}
	if len(lines) > max {
		lines = lines[:max]
		lines[max-1] = cut(lines[max-1]+" ...", textWidth)
	}
	for _, l := range lines {
		s.lines = append(s.lines, fmt.Sprintf(" %-*s%s", labelWidth-1, label, l))
		label = ""
	}
}

// messages fills what is left of the screen with the serious ones.
func (s *screen) messages(m *messages) {
	if m.total == 0 {
		s.field("messages", 1, "the kernel's log cannot be read or is empty")
		return
	}
	text := fmt.Sprintf("%s, none of them a warning or worse", plural(m.total, "line"))
	if n := len(m.serious); n > 0 {
		text = fmt.Sprintf("%s, %d of them a warning or worse", plural(m.total, "line"), n)
	}
	s.field("messages", 1, text)
	room := screenLines - 1 - len(s.lines)
	shown := m.serious
	if len(shown) > room {
		shown = shown[:max(room-1, 0)]
	}
	for _, line := range shown {
		s.lines = append(s.lines, "  "+cut(printable(shortStamp(line)), screenWidth-2))
	}
	if n := len(m.serious) - len(shown); n > 0 && room > 0 {
		s.lines = append(s.lines, fmt.Sprintf("  ... and %d more", n))
	}
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

// wrap breaks a paragraph at spaces, or within words that are too long.
func wrap(s string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(s) {
		switch {
		case line == "":
			line = word
		case len(line)+1+len(word) <= width:
			line += " " + word
		default:
			lines = append(lines, line)
			line = word
		}
		for len(line) > width {
			lines = append(lines, line[:width])
			line = line[width:]
		}
	}
	if line != "" {
		lines = append(lines, line)
	}
	return lines
}

func cut(s string, width int) string {
	if len(s) <= width {
		return s
	}
	return s[:width-3] + "..."
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
