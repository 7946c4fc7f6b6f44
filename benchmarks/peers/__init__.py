"""The engines that Outrider is compared with, each in a process of its own."""
