// Package sample is a package whose tests run in a guest, by vmtest.Main. Some of them
// are made to fail, each in its own way: the tests of vmtest run them one by one.
package sample

// Covered is what coverage is about.
func Covered(yes bool) string {
	if yes {
		return "covered"
	}
	return "not covered"
}
