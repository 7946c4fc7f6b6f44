"""The target service: owns the target model and every decision about the text."""
