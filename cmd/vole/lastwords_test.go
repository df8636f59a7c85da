package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/vole-vmm/vole/vmm"
)

func TestLastWords(t *testing.T) {
	for name, tc := range map[string]struct {
		reason  vmm.Reason
		console string
		want    string
	}{
		"panic": {vmm.Panic, "[    1.2] Kernel panic - not syncing: sysrq triggered crash\r\n[    1.3] CPU: 0\r\n",
			`; on its console: "Kernel panic - not syncing: sysrq triggered crash"`},
		"panic to its end": {vmm.Panic, "[    1.2] Kernel panic - not syncing: x\r\n[    1.3] CPU: 0\r\n[    1.4] ---[ end Kernel panic - not syncing: x ]---\r\n",
			`; on its console: "Kernel panic - not syncing: x"`},
		"panic unsaid":  {vmm.Panic, "something else\n", ""},
		"timeout":       {vmm.Timeout, "first\r\nlast words \r\n\r\n", `; on its console: "last words"`},
		"cut short":     {vmm.TripleFault, "a\nb", `; on its console: "b"`},
		"silent":        {vmm.Timeout, "\r\n", ""},
		"nothing":       {vmm.HostError, "", ""},
		"all well":      {vmm.Poweroff, "x\n", ""},
		"escapes":       {vmm.Timeout, "\x1b[2Jx\n", `; on its console: "\x1b[2Jx"`},
		"a lot at once": {vmm.Timeout, strings.Repeat("x", 300), `; on its console: "` + strings.Repeat("x", 200) + `..."`},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, tc.want, lastWords(vmm.Exit{Reason: tc.reason}, []byte(tc.console)))
		})
	}
}
