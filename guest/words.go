package guest

import (
	"strconv"
	"strings"
)

// action is how the guest ends.
type action string

const (
	actionPoweroff action = "poweroff"
	actionReboot   action = "reboot"
	actionHalt     action = "halt"
	actionCrash    action = "crash"
	actionHang     action = "hang"
	actionTriple   action = "triple"
	actionExit     action = "exit"
)

// words is what the kernel command line asks of the guest.
type words struct {
	action  action
	code    uint8 // for actionExit
	report  bool
	unknown []string // words that begin with "vole." and mean nothing
}

func parseWords(cmdline string) words {
	w := words{action: actionPoweroff, report: true}
	for _, word := range splitCmdline(cmdline) {
		name, ours := strings.CutPrefix(word, "vole.")
		if !ours {
			continue
		}
		key, value, _ := strings.Cut(name, "=")
		value = strings.Trim(value, `"`)
		if !w.set(key, value) {
			w.unknown = append(w.unknown, word)
		}
	}
	return w
}

func (w *words) set(key, value string) (known bool) {
	switch key {
	case "action":
		verb, arg, hasArg := strings.Cut(value, ":")
		switch a := action(verb); a {
		case actionPoweroff, actionReboot, actionHalt, actionCrash, actionHang, actionTriple:
			if hasArg {
				return false
			}
			w.action = a
			return true
		case actionExit:
			code, err := strconv.ParseUint(arg, 0, 8)
			if err != nil {
				return false
			}
			w.action, w.code = a, uint8(code)
			return true
		}
	case "report":
		if value == "yes" || value == "no" {
			w.report = value == "yes"
			return true
		}
	}
	return false
}

// next says what w.action does, for the report.
func (w *words) next() string {
	switch w.action {
	case actionReboot:
		return "restart"
	case actionHalt:
		return "halt"
	case actionCrash:
		return "crash the kernel (sysrq c)"
	case actionHang:
		return "hang"
	case actionTriple:
		return "restart by a triple fault"
	case actionExit:
		return "write " + strconv.Itoa(int(w.code)) + " to the debug exit port"
	}
	return "power off"
}

// splitCmdline splits at white space outside double quotes, as the kernel does
// (lib/cmdline.c, next_arg).
func splitCmdline(s string) []string {
	var words []string
	start, quoted := -1, false
	for i := range len(s) {
		switch c := s[i]; {
		case !quoted && (c == ' ' || c == '\t' || c == '\n'):
			if start >= 0 {
				words = append(words, s[start:i])
			}
			start = -1
		default:
			if c == '"' {
				quoted = !quoted
			}
			if start < 0 {
				start = i
			}
		}
	}
	if start >= 0 {
		words = append(words, s[start:])
	}
	return words
}
