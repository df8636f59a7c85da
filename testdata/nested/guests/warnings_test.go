package guests

import (
	"regexp"
	"slices"

	"github.com/vole-vmm/vole/testdata/nested"
)

// excusedWarnings are the kernel's messages of level warning and worse that a
// guest may print, each with the reason. Stock QEMU's guests on the same host
// print them too, microvm's that about PCI (TestWarningsOfPeers shows it), and
// a backtrace about XSAVE on emulated SVM besides.
var excusedWarnings = []excuse{
	{`reboot: Power down$`, "an emergency message of every power-off, by design of the kernel"},
	{`Speculative Return Stack Overflow: (IBPB-extending microcode not applied!|WARNING: See )`,
		"about the host's processor, which is passed through"},
	{`PCI: (Fatal: No config space access function found|System does not support PCI)$`,
		"the machine has no PCI; QEMU's microvm neither"},
}

// emulatedWarnings are excused in the emulated host only. They come and go with
// its load; those about late timers were not seen with QEMU, nor looked for.
var emulatedWarnings = []excuse{
	{`(Unstable clock detected, switching default tracing clock to "global"|If you want to keep using the local clock, then add:|  "trace_clock=local"|on the kernel command line)$`,
		"the emulated host has no stable TSC, so KVM offers no stable clock"},
	{`clocksource: Long readout interval, skipping watchdog check: cs_nsec: \d+ wd_nsec: \d+$`,
		"the kernel's check of its clocks, due each half second, came half a second late, by both clocks alike"},
	{`clocksource: (timekeeping watchdog on CPU\d+: Marking clocksource 'tsc' as unstable| +'(kvm-clock|tsc)' | +Clocksource 'tsc' skewed )|hrtimer: interrupt took \d+ ns$`,
		"the emulated host's processors do not tick evenly under load"},
}

type excuse struct{ pattern, reason string }

func excusedWarning(text string) bool {
	list := excusedWarnings
	if nested.Inside() {
		list = slices.Concat(list, emulatedWarnings)
	}
	return slices.ContainsFunc(list, func(e excuse) bool {
		return regexp.MustCompile(`^(?:` + e.pattern + `)`).MatchString(text)
	})
}
